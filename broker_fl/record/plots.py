"""The pictures of the report, one function each. matplotlib is imported here: import this module late."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from broker_fl.record.bars import draw_breakdown, draw_contribution, draw_outcomes
from broker_fl.record.curves import (
    SINCE_SUBMISSION,
    draw_lines,
    duration_line,
    evaluation_line,
    line_by_time,
    task_time_line,
    training_line,
)
from broker_fl.record.drawing import FULL, HALF, NARROW, svg
from broker_fl.record.gantt import draw_timeline
from broker_fl.record.history import History
from broker_fl.record.rounds import RoundRecord
from broker_fl.record.text import one_line
from broker_fl.record.timeline import lanes

MAX_LANES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A picture in two sizes, as SVG elements; the page shows the one that fits."""

    title: str
    note: str
    wide: str
    narrow: str


class Charts:
    """Draws for one page; keeps the ids of its drawings apart."""

    def __init__(self) -> None:
        self._count = 0

    def _chart(self, title: str, note: str, draw: Callable[[int], Figure], wide: int = HALF) -> Chart:
        self._count += 1
        return Chart(
            title=title,
            note=note,
            wide=svg(lambda: draw(wide), title, f"w{self._count}"),
            narrow=svg(lambda: draw(NARROW), title, f"n{self._count}"),
        )

    def metric(self, histories: Sequence[History], name: str) -> Chart:
        """One metric over model versions; of one run evaluation and training, of several the evaluations."""
        if len(histories) == 1:
            lines = [evaluation_line(histories[0], name), training_line(histories[0], name)]
        else:
            lines = [evaluation_line(history, name, index) for index, history in enumerate(histories)]
        lines = [line for line in lines if len(line.x)]
        note = "Mean over learners, weighted by examples; the band is from the lowest to the highest learner."
        with_legend = len(histories) == 1
        return self._chart(
            one_line(name, 60),
            note,
            lambda width: draw_lines(width, lines, "model version", with_legend=with_legend),
        )

    def metric_by_time(self, histories: Sequence[History], name: str) -> Chart:
        """One metric over the time since the job was submitted."""
        lines = [line_by_time(history, name, index) for index, history in enumerate(histories)]
        lines = [line for line in lines if len(line.x)]
        return self._chart(
            f"{one_line(name, 60)} over time",
            "At the moment when the version was evaluated.",
            lambda width: draw_lines(width, lines, SINCE_SUBMISSION),
        )

    def durations(self, histories: Sequence[History]) -> Chart:
        """How long each round took, of several runs."""
        lines = [duration_line(history, index) for index, history in enumerate(histories)]
        return self._chart(
            "Duration of rounds",
            "Seconds from the selection of the cohort to the stored version.",
            lambda width: draw_lines(width, [line for line in lines if len(line.x)], "round", unit=" s"),
        )

    def task_times(self, rounds: Sequence[RoundRecord]) -> Chart:
        """How long a learner has a task, over the rounds."""
        return self._chart(
            "Time of a task",
            "From sending to the folded update: median over learners, and from the fastest to the slowest.",
            lambda width: draw_lines(width, [task_time_line(rounds)], "round", unit=" s"),
        )

    def breakdown(self, rounds: Sequence[RoundRecord]) -> Chart:
        """Where the time of each round went."""
        return self._chart(
            "Where the time of a round goes",
            "Along the path of the contributor that came last; “wait” is for learners that did not "
            "deliver and for messages on their way.",
            lambda width: draw_breakdown(width, rounds),
        )

    def outcomes(self, rounds: Sequence[RoundRecord]) -> Chart:
        """What became of the tasks of each round."""
        return self._chart(
            "What became of the tasks",
            "Tasks by round; of a round that was retried, all attempts.",
            lambda width: draw_outcomes(width, rounds),
        )

    def contribution(self, history: History) -> Chart:
        """How much each learner's updates weigh in the final model's rounds."""
        return self._chart(
            "Contribution of learners",
            "Share of the weight of all updates that were folded.",
            lambda width: draw_contribution(width, history),
        )

    def timeline(self, record: RoundRecord) -> Chart:
        """One round, a bar per learner."""
        drawn = lanes(record, MAX_LANES)
        note = "Marked: late, failed, refused, and those that took longer than 1.5 × the median of the round."
        if len(record.tasks) > len(drawn):
            note += f" {len(drawn)} of {len(record.tasks)} learners, from the fastest to the slowest."
        return self._chart(
            f"Round {record.round}",
            note,
            lambda width: draw_timeline(width, record, drawn),
            wide=FULL,
        )
