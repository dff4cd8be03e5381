"""What load balancing does about stragglers: round-trip time of each learner in each round.

python -m examples.experiments.stragglers
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from broker_fl.partition import iid
from broker_fl.simulation import Spread, World

from .experiment import Experiment, Figures
from .federation import Outcome, labels, run, sites
from .plotting import BLACK, BLUE, GREEN, MUTED, OTHERS, VERMILION, label_ends, panels, whole_numbers
from .tables import last_before, table


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One size of the experiment."""

    num_learners: int
    rounds: int
    step_s: float
    target_s: float
    epochs: int = 8
    max_epochs: int = 20


FULL = Setting(num_learners=10, rounds=16, step_s=0.002, target_s=0.6)
QUICK = Setting(num_learners=4, rounds=3, step_s=0.001, target_s=0.3)


def measure(quick: bool) -> Figures:
    """The same job with and without pacing."""
    setting = QUICK if quick else FULL
    learners = sites(iid(len(labels()), FULL.num_learners, seed=0)[: setting.num_learners])
    world = World(seed=1, speeds=Spread(low=0.1, high=1.0), step_s=setting.step_s)
    job = {
        "protocol": {"min_learners": setting.num_learners},
        "termination": {"rounds": setting.rounds},
        "parameters": {"epochs": setting.epochs, "learning_rate": 0.05, "seed": 0},
    }
    balanced = {"name": "aimd", "target_s": setting.target_s, "max_epochs": setting.max_epochs}
    speed = {name: profile.speed for name, profile in world.profiles(list(learners)).items()}
    slowest_first = sorted(speed, key=lambda learner: speed[learner])
    return {
        **asdict(setting),
        "speed": [speed[learner] for learner in slowest_first],
        "off": _figures(run(learners, job, world), slowest_first),
        "on": _figures(run(learners, {**job, "pacing": balanced}, world), slowest_first),
    }


def _figures(outcome: Outcome, learners: list[str]) -> Figures:
    rounds = outcome.history.committed
    tasks = [[record.tasks[learner] for record in rounds] for learner in learners]
    return {
        "round_s": [record.round_s for record in rounds],
        "round_trip_s": [[task.round_trip_s for task in own] for own in tasks],
        "epochs": [[task.num_epochs for task in own] for own in tasks],
        "time_s": outcome.time_s,
        "accuracy": outcome.accuracy,
    }


# ---------------------------------------------------------------- the picture


def draw(figures: Figures) -> Figure:
    """Above how long each learner took, below how much work it was given."""
    figure, axes = panels(2, 2, 5.6, _title(figures), sharex=True, sharey="row", height_ratios=[3, 2])
    for column, name in enumerate(("off", "on")):
        above, below = axes[0][column], axes[1][column]
        _lines(above, figures, figures[name]["round_trip_s"])
        _lines(below, figures, figures[name]["epochs"])
        whole_numbers(below, "round")
    (off, on), (work, _) = axes
    off.set_title("without load balancing")
    on.set_title("with load balancing")
    off.set_ylabel("round-trip time (s)")
    off.set_ylim(bottom=0)
    work.set_ylabel("local epochs")
    work.set_ylim(0, figures["max_epochs"] + 1)
    target_s = figures["target_s"]
    on.plot(
        [1, figures["rounds"]],
        [target_s, target_s],
        color=BLACK,
        linestyle=(0, (4, 3)),
        linewidth=1,
        zorder=4,
    )
    ends = [
        (figures["off"]["round_trip_s"][place][-1], f"speed {figures['speed'][place]:.2g}", colour)
        for place, colour in _highlights(figures).items()
    ]
    ends.append((figures["off"]["round_trip_s"][1][-1], "the others", MUTED))
    label_ends(off, ends, 0.06 * off.get_ylim()[1], room=0.25)
    label_ends(on, [(target_s, f"target {target_s:g} s", BLACK)], 0.0, room=0.25)
    return figure


def _title(figures: Figures) -> str:
    off, on = (mean(figures[name]["round_s"]) for name in ("off", "on"))
    verb = "shortens" if on < off else "does not shorten"
    return f"Load balancing {verb} the mean round: {off:.2f} s without it, {on:.2f} s with it"


def _highlights(figures: Figures) -> dict[int, str]:
    """The slowest, one in the middle, and the fastest, by their places."""
    num_learners = figures["num_learners"]
    return {0: VERMILION, (num_learners - 1) // 2: BLUE, num_learners - 1: GREEN}


def _lines(axes: Axes, figures: Figures, values: list[list[float]]) -> None:
    """A line for each learner; three in colour, the others grey behind them."""
    highlights = _highlights(figures)
    rounds = range(1, figures["rounds"] + 1)
    for place, own in enumerate(values):
        if (colour := highlights.get(place)) is not None:
            axes.plot(rounds, own, color=colour, marker="o", markersize=3, zorder=3)
        else:
            axes.plot(rounds, own, color=OTHERS, linewidth=1.1, zorder=2)


# ---------------------------------------------------------------- the page


def sentence(figures: Figures) -> str:
    """The finding."""
    off, on = (mean(figures[name]["round_s"]) for name in ("off", "on"))
    return (
        f"Load balancing gives less work to the slow: with speeds ten times apart, a round takes {on:.2f} s "
        f"on average instead of {off:.2f} s."
    )


def section(figures: Figures) -> str:
    """Of the page."""
    until_s = min(figures[name]["time_s"][-1] for name in ("off", "on"))
    return TEXT.format(
        table=table(
            ["load balancing", "mean round", "longest round trip, last 5 rounds", "epochs of all learners",
             f"test accuracy after {until_s:.1f} s", f"after {figures['rounds']} rounds"],
            [_row(name, figures[name], until_s) for name in ("off", "on")],
        ),
        **{key: figures[key] for key in ("num_learners", "epochs", "max_epochs", "target_s", "step_s")},
    )  # fmt: skip


def _row(name: str, found: Figures, until_s: float) -> list[str]:
    return [
        name,
        f"{mean(found['round_s']):.2f} s",
        f"{max(max(own[-5:]) for own in found['round_trip_s']):.2f} s",
        f"{sum(map(sum, found['epochs'])):.0f}",
        f"{last_before(found['time_s'], found['accuracy'], until_s):.3f}",
        f"{found['accuracy'][-1]:.3f}",
    ]


TEXT = """## Load balancing of stragglers

{num_learners} learners have equal shares of the digits; their speeds go from 0.1 to 1, a step taking
{step_s:g} s / speed. The protocol is synchronous and waits for all. Without load balancing each does
{epochs} local epochs in every round. With it (`pacing = {{ name = "aimd", target_s = {target_s:g},
max_epochs = {max_epochs} }}`) each begins with {epochs}, and gets one more after each round in which its
update came within {target_s:g} s of the task, half as many after one in which it did not.

![Round-trip time and local epochs by learner and round](pictures/experiment-stragglers.svg)

{table}

- Without it a round lasts as long as the slowest learner takes, and the others wait.
- With it the slow find their work within a few rounds. They do not settle there: additive increase runs
  into the target again and again, so that a round is still sometimes longer than it.
- The fast use the time in which they had waited: they get more epochs up to `max_epochs`. The model leans
  to their data the more for it; here data is spread evenly, so that does no harm.
- By rounds it gains little or nothing, by seconds it does: compare the two columns of accuracies.
"""

EXPERIMENT = Experiment(
    name="stragglers", about=__doc__, run=measure, draw=draw, section=section, sentence=sentence
)

if __name__ == "__main__":
    EXPERIMENT.main()
