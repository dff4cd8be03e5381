"""What waiting for the slow costs: accuracy against time under each protocol, with speeds ten times apart.

python -m examples.experiments.protocols
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.figure import Figure

from broker_fl.partition import dirichlet, iid
from broker_fl.simulation import Spread, World

from .experiment import Experiment, Figures
from .federation import Outcome, labels, run, sites
from .plotting import BLUE, GREEN, ORANGE, VERMILION, label_ends, panels
from .tables import first_at, seconds, table

ALPHA = 0.3
LEVEL = 0.8
EPOCHS = 2
MANY = 100
"""Versions, from which on a line is drawn thin."""
COLOURS = {"synchronous": BLUE, "semi-synchronous": GREEN, "FedAsync": VERMILION, "FedBuff": ORANGE}
SPLITS = {"alike": "data alike (IID)", "uneven": f"data that differs (Dirichlet, α = {ALPHA:g})"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One size of the experiment."""

    num_learners: int
    until: dict[str, float]
    """When a job ends."""
    buffer_size: int
    splits: tuple[str, ...]
    step_s: float


FULL = Setting(
    num_learners=10, until={"wall_clock_s": 10.0}, buffer_size=5, splits=("alike", "uneven"), step_s=0.008
)
QUICK = Setting(num_learners=4, until={"updates": 16}, buffer_size=2, splits=("alike",), step_s=0.001)


def measure(quick: bool) -> Figures:
    """Each protocol for the same time, on both splits."""
    setting = QUICK if quick else FULL
    return {
        **asdict(setting),
        "found": {
            split: {name: _run(setting, split, job) for name, job in _jobs(setting).items()}
            for split in setting.splits
        },
    }


def _jobs(setting: Setting) -> dict[str, dict[str, Any]]:
    asynchronous = {"name": "asynchronous", "min_learners": setting.num_learners}
    semi_synchronous = {
        "name": "semi_synchronous",
        "lam": float(EPOCHS),
        "min_learners": setting.num_learners,
    }
    return {
        "synchronous": {"protocol": {"min_learners": setting.num_learners}},
        "semi-synchronous": {"protocol": semi_synchronous},
        "FedAsync": {"protocol": asynchronous, "rule": {"name": "fedasync"}},
        "FedBuff": {
            "protocol": asynchronous,
            "rule": {"name": "fedbuff", "buffer_size": setting.buffer_size},
        },
    }


def _run(setting: Setting, split: str, job: dict[str, Any]) -> Figures:
    num = setting.num_learners
    if split == "alike":
        parts = iid(len(labels()), num, seed=0)
    else:
        parts = dirichlet(labels(), num, alpha=ALPHA, seed=0, min_examples=32)
    world = World(seed=1, speeds=Spread(low=0.1, high=1.0), step_s=setting.step_s)
    learners = sites(parts)
    common = {
        "termination": setting.until,
        "parameters": {"epochs": EPOCHS, "learning_rate": 0.05, "seed": 0},
    }
    return _figures(run(learners, {**job, **common}, world))


def _figures(outcome: Outcome) -> Figures:
    learners = outcome.history.learners.values()
    counts = [learner.folded for learner in learners]
    return {
        "time_s": outcome.time_s,
        "accuracy": outcome.accuracy,
        "num_updates": sum(counts),
        "num_steps": sum(learner.num_steps for learner in learners),
        "fewest_updates": min(counts),
        "most_updates": max(counts),
    }


# ---------------------------------------------------------------- the picture


def draw(figures: Figures) -> Figure:
    """Accuracy of the newest version at each moment, a panel for each split."""
    figure, (row,) = panels(1, len(figures["splits"]), 4.2, _title(figures), sharey=True)
    end_s = max(found["time_s"][-1] for split in figures["found"].values() for found in split.values())
    end_s = figures["until"].get("wall_clock_s", end_s)
    for axes, split in zip(row, figures["splits"], strict=True):
        ends = []
        for name, found in figures["found"][split].items():
            thin = 1.0 if len(found["time_s"]) > MANY else 1.8
            times, accuracy = [*found["time_s"], end_s], [*found["accuracy"], found["accuracy"][-1]]
            axes.plot(times, accuracy, color=COLOURS[name], drawstyle="steps-post", linewidth=thin)
            ends.append((accuracy[-1], name, COLOURS[name]))
        axes.set_title(SPLITS[split])
        axes.set_xlabel("time (s)")
        axes.set_ylim(0, 1)
        label_ends(axes, ends, 0.055, room=0.4)
    row[0].set_ylabel("accuracy on held-out digits")
    return figure


def _title(figures: Figures) -> str:
    gains = [found for split in figures["splits"] if (found := _times_to_level(figures, split)) is not None]
    if len(gains) < len(SPLITS) or any(best >= waits for _, best, waits in gains):
        return "Accuracy against time, with speeds ten times apart"
    (_, a, b), (_, c, d) = gains
    times = f"{b / a:.1f} times sooner, {d / c:.1f} where data differs"
    return f"Not waiting for the slow: {LEVEL:.0%} accuracy {times}"


def _times_to_level(figures: Figures, split: str) -> tuple[str, float, float] | None:
    """The asynchronous rule that is first at ``LEVEL``, when, and when the synchronous job is."""
    times = {name: first_at(f["time_s"], f["accuracy"], LEVEL) for name, f in figures["found"][split].items()}
    waits = times["synchronous"]
    reached = [(at, name) for name in ("FedAsync", "FedBuff") if (at := times[name]) is not None]
    return (min(reached)[1], min(reached)[0], waits) if reached and waits is not None else None


# ---------------------------------------------------------------- the page


def sentence(figures: Figures) -> str:
    """The finding."""
    parts = [
        f"{found[1]:.1f} s ({found[0]}) instead of {found[2]:.1f} s (synchronous) on {SPLITS[split]}"
        for split in figures["splits"]
        if (found := _times_to_level(figures, split)) is not None
    ]
    reached = f"{LEVEL:.0%} accuracy is there after {', '.join(parts)}"
    return f"With speeds ten times apart, {reached if parts else 'not all came to that accuracy'}."


def section(figures: Figures) -> str:
    """Of the page."""
    tables = "\n\n".join(
        f"{SPLITS[split][0].upper()}{SPLITS[split][1:]}:\n\n{_table(figures, split)}" for split in SPLITS
    )
    return TEXT.format(
        tables=tables,
        alpha=ALPHA,
        epochs=EPOCHS,
        early=_early_versions(figures["found"]["alike"]),
        **figures["until"],
        **{key: figures[key] for key in ("num_learners", "buffer_size", "step_s")},
    )


def _early_versions(found: Figures) -> int:
    """Of FedAsync, before the synchronous protocol had its first."""
    first_s = found["synchronous"]["time_s"][1]
    return sum(time_s < first_s for time_s in found["FedAsync"]["time_s"][1:])


def _table(figures: Figures, split: str) -> str:
    rows = [
        [
            name,
            seconds(first_at(found["time_s"], found["accuracy"], LEVEL)),
            f"{found['accuracy'][-1]:.3f}",
            str(len(found["accuracy"]) - 1),
            str(found["num_updates"]),
            str(found["num_steps"]),
            f"{found['fewest_updates']} to {found['most_updates']}",
        ]
        for name, found in figures["found"][split].items()
    ]
    head = [
        f"{LEVEL:.0%} accuracy after",
        "accuracy at the end",
        "versions",
        "updates",
        "steps",
        "updates of one learner",
    ]
    return table(["", *head], rows)


TEXT = """## Waiting for the slow, or not

{num_learners} learners whose speeds go from 0.1 to 1, a step taking {step_s:g} s / speed; each job runs for
{wall_clock_s:g} s.

- **synchronous**: FedAvg over rounds of {epochs} local epochs that wait for all;
- **semi-synchronous**: the same with `lam = {epochs}`: all train for as long as the slowest needs for
  {epochs} epochs, the fast do more steps;
- **FedAsync**: each update of {epochs} epochs makes a version (α = 0.6, polynomial staleness weights: the
  defaults);
- **FedBuff**: {buffer_size} such updates make a version.

![Accuracy against time](pictures/experiment-protocols.svg)

{tables}

- Where data is alike, waiting is what costs: FedAsync has made {early} versions when the first round of the
  others is over. That the fastest learner gives many times the updates of the slowest does no harm, since
  any learner's examples are as good.
- Where it differs, it does harm. FedAsync makes up to 0.6 of a version of one update, and so goes after
  whoever came last, mostly a fast learner with few examples: its accuracy jumps from version to version,
  and ends below the semi-synchronous protocol's, about where the synchronous one's does. FedBuff averages
  {buffer_size} learners and is steadier.
- A semi-synchronous round takes as long as a synchronous one, but nobody idles meanwhile: see the steps.
  Its first round is an ordinary one, in which the learners are measured. At the end it is about level with
  FedBuff, with a third of the updates to send.
"""

EXPERIMENT = Experiment(
    name="protocols", about=__doc__, run=measure, draw=draw, section=section, sentence=sentence
)

if __name__ == "__main__":
    EXPERIMENT.main()
