"""The pictures of the report, one function each. matplotlib is imported here: import this module late."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from broker_fl.record.bars import (
    draw_breakdown,
    draw_contribution,
    draw_learner_outcomes,
    draw_outcomes,
    draw_staleness,
)
from broker_fl.record.curves import (
    MAX_BANDS,
    Line,
    draw_lines,
    duration_line,
    evaluation_line,
    line_by_time,
    task_time_line,
    training_line,
)
from broker_fl.record.drawing import FULL, HALF, NARROW, SINCE_SUBMISSION, svg
from broker_fl.record.gantt import draw_timeline, draw_window
from broker_fl.record.history import History
from broker_fl.record.per_learner import MAX_LINES, draw_map, draw_per_learner, round_trips
from broker_fl.record.rounds import RoundRecord
from broker_fl.record.text import one_line, seconds, size
from broker_fl.record.timeline import Window, commits_in, lanes, task_seconds, window_lanes

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
        note = "Mean over learners, weighted by examples."
        if any(history.asynchronous for history in histories):
            note += (
                " Without rounds: of each learner its newest evaluation, of this version or an earlier one."
            )
        spread = any(one and one.num_learners > 1 for line in lines for one in line.spreads)
        if spread and len(lines) <= MAX_BANDS:
            note += " The band is from the lowest to the highest learner"
            note += "; darker, the middle half of them." if len(lines) <= 2 else "."
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
            "By when the version was stored.",
            lambda width: draw_lines(width, lines, SINCE_SUBMISSION),
        )

    def durations(self, histories: Sequence[History]) -> Chart:
        """How long each round took; from version to version where there are none."""
        lines = [duration_line(history, index) for index, history in enumerate(histories)]
        versions = any(history.asynchronous for history in histories)
        return self._chart(
            "Time from version to version" if versions else "Duration of rounds",
            "From the last stored version to the next."
            if versions
            else "From the selection of the cohort to the stored version.",
            lambda width: draw_lines(
                width,
                [line for line in lines if len(line.x)],
                "model version" if versions else "round",
                shown=seconds,
            ),
        )

    def task_times(self, rounds: Sequence[RoundRecord]) -> Chart:
        """How long a learner has a task, over the rounds."""
        return self._chart(
            "Time of a task",
            "From sending to the folded update: median over learners, from the fastest to the slowest, and "
            "darker the middle half.",
            lambda width: draw_lines(width, [task_time_line(rounds)], "round", shown=seconds),
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
            "Tasks by round, in all its attempts. Cancelled: others had delivered enough.",
            lambda width: draw_outcomes(width, rounds),
        )

    def contribution(self, history: History) -> Chart:
        """How much each learner's updates weigh in the final model's rounds."""
        return self._chart(
            "Contribution of learners",
            "Share of the weight of all updates that were folded.",
            lambda width: draw_contribution(width, history),
        )

    def learner_outcomes(self, history: History) -> Chart:
        """What became of the tasks of each learner."""
        return self._chart(
            "What became of the tasks",
            "Tasks by learner. Cancelled: not needed any more, since others had delivered or the job ended.",
            lambda width: draw_learner_outcomes(width, history),
        )

    def staleness(self, stalenesses: Sequence[float]) -> Chart:
        """How stale the updates were."""
        return self._chart(
            "Staleness of updates",
            "Versions that were committed while the learner trained, by number of updates that were folded.",
            lambda width: draw_staleness(width, stalenesses),
        )

    def round_trips(self, history: History) -> Chart:
        """How long each learner had its task in each round."""
        if history.asynchronous:
            return self._chart(
                "Time of each task",
                "From sending to the folded update, by when it was sent.",
                lambda width: draw_per_learner(width, history, task_seconds, seconds),
                wide=FULL,
            )
        shown = round_trips(history)
        note = "From sending to the folded update; the fastest learner on top."
        if len(shown.learners) < len(history.learners):
            note += f" {len(shown.learners)} of {len(history.learners)} learners."
        if len(shown.first_rounds) > 1 and shown.first_rounds[1] - shown.first_rounds[0] > 1:
            note += " Several rounds share a column: their median."
        return self._chart(
            "Time of the task, by learner and round",
            note,
            lambda width: draw_map(width, shown),
            wide=FULL,
        )

    def workload(self, history: History, name: str) -> Chart:
        """How much work pacing gave each learner."""
        note = f"The task parameter “{one_line(name, 40)}” that pacing set for each learner"
        many = len(history.learners) > MAX_LINES and not history.asynchronous
        return self._chart(
            f"Workload: {one_line(name, 40)}",
            note + ("; mean, and from the least to the most." if many else "."),
            lambda width: draw_per_learner(
                width,
                history,
                lambda record: record.tasks.named(record.tasks.workload, name),
                "{:.4g}".format,
            ),
        )

    def memory(self, lines: Sequence[Line]) -> Chart:
        """Memory of the processes."""
        return self._chart(
            "Memory",
            "Of the controller’s process when a version was stored, and the most that learners’ processes "
            "have had (mean, least, most). Learners in one process share it.",
            lambda width: draw_lines(width, lines, "model version", with_legend=True, shown=size),
        )

    def window(self, history: History, window: Window) -> Chart:
        """Some time of an asynchronous job, a lane per learner."""
        drawn = window_lanes(history, window, MAX_LANES)
        note = "Marked: tasks that failed, were taken back, or whose update was refused."
        if len(history.learners) > len(drawn):
            note += f" {len(drawn)} of {len(history.learners)} learners, from the fastest to the slowest."
        commits = commits_in(history, window)
        return self._chart(
            "Timeline", note, lambda width: draw_window(width, window, drawn, commits), wide=FULL
        )

    def timeline(self, record: RoundRecord) -> Chart:
        """One round, a bar per learner."""
        drawn = lanes(record, MAX_LANES)
        note = "Marked: late, failed, refused, and those that took longer than 1.5 × the median of the round."
        if len(record.tasks) > len(drawn):
            note += f" {len(drawn)} of {len(record.tasks)} learners, from the fastest to the slowest."
        return self._chart(
            f"Round {record.round + 1}",
            note,
            lambda width: draw_timeline(width, record, drawn),
            wide=FULL,
        )
