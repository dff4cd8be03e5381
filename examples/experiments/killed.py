"""What becomes of a job whose learners are killed: time of each round and accuracy, with 0 to 40 % killed.

python -m examples.experiments.killed
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import mean

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from broker_fl.partition import dirichlet
from broker_fl.simulation import Kill, World

from .experiment import Experiment, Figures
from .federation import labels, run, sites
from .plotting import MUTED, label_ends, panels, shades, whole_numbers
from .tables import table

QUORUM = 0.75
ALPHA = 0.1
MISSED_HEARTBEATS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One size of the experiment."""

    num_learners: int
    rounds: int
    at_round: int
    """In which learners die, counted from 1."""
    shares: tuple[float, ...]
    steps: int = 25
    step_s: float = 0.02
    heartbeat_s: float = 0.25


FULL = Setting(num_learners=20, rounds=10, at_round=4, shares=(0.0, 0.1, 0.2, 0.3, 0.4))
QUICK = Setting(
    num_learners=10, rounds=4, at_round=2, shares=(0.0, 0.4), steps=10, step_s=0.01, heartbeat_s=0.5
)


def measure(quick: bool) -> Figures:
    """The same job, with ever more learners killed in the same round."""
    setting = QUICK if quick else FULL
    parts = dirichlet(labels(), setting.num_learners, alpha=ALPHA, seed=0, min_examples=16)
    return {**asdict(setting), "killed": [_run(setting, parts, share) for share in setting.shares]}


def _run(setting: Setting, parts: list[npt.NDArray[np.int64]], share: float) -> Figures:
    faults = [Kill(fraction=share, at_round=setting.at_round - 1)] if share else []
    outcome = run(
        sites(parts),
        {
            "protocol": {"quorum": QUORUM, "min_learners": math.ceil(setting.num_learners / 2)},
            "termination": {"rounds": setting.rounds},
            "parameters": {"steps": setting.steps, "learning_rate": 0.1, "seed": 0},
        },
        World(seed=0, step_s=setting.step_s, heartbeat_s=setting.heartbeat_s, faults=faults),
    )
    rounds = outcome.history.committed
    return {
        "share": share,
        "round_s": [record.round_s for record in rounds],
        "num_updates": [record.num_contributors for record in rounds],
        "num_lost": sum(learner.lost for learner in outcome.history.learners.values()),
        "accuracy": outcome.accuracy,
        "reason": outcome.reason,
    }


# ---------------------------------------------------------------- the picture


def draw(figures: Figures) -> Figure:
    """Left how long each round took, right the accuracy."""
    figure, ((times, accuracies),) = panels(1, 2, 3.9, _title(figures))
    colours = shades(len(figures["killed"]))
    ends = []
    for colour, found in zip(colours, figures["killed"], strict=True):
        rounds = range(1, len(found["round_s"]) + 1)
        times.plot(rounds, found["round_s"], color=colour, marker="o", markersize=3)
        accuracies.plot([0, *rounds], found["accuracy"], color=colour, marker="o", markersize=3)
        ends.append(
            (
                found["accuracy"][-1],
                f"{found['share']:.0%} killed" if found["share"] else "none killed",
                colour,
            )
        )
    for axes in (times, accuracies):
        axes.axvline(figures["at_round"], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        whole_numbers(axes, "round")
    times.set_ylabel("time of the round (s)")
    times.set_ylim(bottom=0)
    times.set_xlim(0.5, figures["rounds"] + 0.5)
    times.annotate(
        f"killed in round {figures['at_round']};\nmissed after {MISSED_HEARTBEATS} heartbeats\n"
        f"of {figures['heartbeat_s']:g} s",
        (figures["at_round"] + 0.6, 0.97 * times.get_ylim()[1]), color=MUTED, va="top", fontsize=9.5,
    )  # fmt: skip
    accuracies.set_ylabel("accuracy on held-out digits")
    accuracies.set_ylim(0.5, 0.95)
    accuracies.set_xlim(0, figures["rounds"])
    label_ends(accuracies, ends, 0.027, room=0.28)
    return figure


def _title(figures: Figures) -> str:
    none, most = figures["killed"][0], figures["killed"][-1]
    if len(most["round_s"]) < figures["rounds"] or most["num_updates"][-1] == none["num_updates"][-1]:
        return "Learners killed in the middle of a job"
    worst = max(most["round_s"])
    return (
        f"{most['share']:.0%} killed: one round of {worst:.1f} s, and {most['accuracy'][-1]:.2f} accuracy "
        f"instead of {none['accuracy'][-1]:.2f}"
    )


# ---------------------------------------------------------------- the page


def sentence(figures: Figures) -> str:
    """The finding."""
    none, most = figures["killed"][0], figures["killed"][-1]
    return (
        f"With {most['share']:.0%} of {figures['num_learners']} learners killed in round "
        f"{figures['at_round']}, that round takes {most['round_s'][figures['at_round'] - 1]:.1f} s "
        f"instead of {none['round_s'][figures['at_round'] - 1]:.1f} s, and the job ends at an accuracy of "
        f"{most['accuracy'][-1]:.3f} instead of {none['accuracy'][-1]:.3f}."
    )


def section(figures: Figures) -> str:
    """Of the page."""
    num_learners = figures["num_learners"]
    return TEXT.format(
        table=table(
            ["killed", "mean round before", f"round {figures['at_round']}", "mean round after",
             "updates of the last round", "test accuracy at the end"],
            [_row(found, figures["at_round"]) for found in figures["killed"]],
        ),
        quorum=QUORUM,
        alpha=ALPHA,
        fixed=math.ceil(QUORUM * num_learners),
        left=figures["killed"][-1]["num_updates"][-1],
        missed=MISSED_HEARTBEATS,
        detection_s=MISSED_HEARTBEATS * figures["heartbeat_s"],
        **{key: figures[key] for key in ("num_learners", "rounds", "at_round", "steps", "heartbeat_s")},
    )  # fmt: skip


def _row(found: Figures, at_round: int) -> list[str]:
    times = found["round_s"]
    return [
        f"{found['share']:.0%}",
        f"{mean(times[: at_round - 1]):.2f} s",
        f"{times[at_round - 1]:.2f} s",
        f"{mean(times[at_round:]):.2f} s",
        str(found["num_updates"][-1]),
        f"{found['accuracy'][-1]:.3f}",
    ]


TEXT = """## Learners killed in the middle of a job

{num_learners} learners have uneven shares of the digits (Dirichlet by label, α = {alpha:g}), and do {steps}
steps in each of {rounds} rounds. In round {at_round} some of them are killed, as a process is by `kill -9`,
and never come back. The protocol is synchronous with `quorum = {quorum:g}` and no deadline. Those that a
smaller share kills are among those that a larger share kills.

![Time of each round and accuracy](pictures/experiment-killed.svg)

{table}

- The job goes on without them. The quorum is of the *live* cohort: {quorum:.0%} of all {num_learners} would
  be {fixed} updates, which {left} learners could never give.
- It costs one round: a killed learner says nothing, so the round waits until {missed} of its heartbeats,
  one every {heartbeat_s:g} s, are missing ({detection_s:g} s). How many were killed makes no difference. A
  `deadline_s` would end the round sooner where it is shorter than that.
- What only the killed had is lost to the model. Where the others have the same digits, nothing is; but with
  such uneven shares, the larger the share that is killed, the likelier it had most of some digit. No
  protocol brings that back.
"""

EXPERIMENT = Experiment(
    name="killed", about=__doc__, run=measure, draw=draw, section=section, sentence=sentence
)

if __name__ == "__main__":
    EXPERIMENT.main()
