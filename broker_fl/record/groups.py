"""Events of groups, as those of each of their learners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from broker_fl.wire import events as ev
from broker_fl.wire.messages import Timings


def finished(event: ev.GroupFinished) -> Iterator[ev.TaskFinished]:
    """One ``task_finished`` for each learner of the page."""
    columns = {name: _whole(getattr(event, name), len(event.learners)) for name in event.COLUMNS}
    metrics, evaluation = (_rows(event, kind) for kind in ("metrics", "evaluation"))
    for place, learner in enumerate(event.learners):
        row = {name: values[place] for name, values in columns.items()}
        yield ev.TaskFinished.model_construct(
            job=event.job,
            time_s=event.time_s,
            round=event.round,
            learner=learner,
            num_examples=int(row["num_examples"]),
            num_steps=int(row["num_steps"]),
            num_epochs=row["num_epochs"],
            metrics=metrics[place],
            evaluation=evaluation[place],
            timings=Timings.model_construct(
                receive_s=event.receive_s,
                queue_s=row["queue_s"],
                evaluate_s=row["evaluate_s"],
                train_s=row["train_s"],
            ),
            peak_memory_bytes=event.peak_memory_bytes,
        )


def folded(event: ev.GroupFolded, weights: dict[str, float]) -> Iterator[ev.UpdateFolded]:
    """One ``update_folded`` for each learner; bytes, messages and the time of the fold are the group's, and
    not theirs.
    """
    for learner, weight in weights.items():
        yield ev.UpdateFolded.model_construct(
            job=event.job,
            time_s=event.time_s,
            round=event.round,
            learner=learner,
            weight=weight,
            staleness=0,
            num_bytes=0,
            num_messages=0,
            upload_s=event.upload_s,
            fold_s=0.0,
        )


def weights(event: ev.GroupFinished, weighting: str) -> dict[str, float]:
    """Learner → what its update counts in the sum."""
    if weighting == "equal":
        return dict.fromkeys(event.learners, 1.0)
    column = event.num_steps if weighting == "steps" else event.num_examples
    return dict(zip(event.learners, map(float, _whole(column, len(event.learners))), strict=True))


def _whole(column: Sequence[float], length: int) -> Sequence[float]:
    return column if len(column) == length else [column[0] if column else 0] * length


def _rows(event: ev.GroupFinished, kind: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{} for _ in event.learners]
    for name, column in getattr(event, kind).items():
        if not column:
            continue
        for row, value in zip(rows, _whole(column, len(rows)), strict=True):
            if value == value:
                row[name] = value
    return rows
