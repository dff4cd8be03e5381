"""A share: what some of a group's learners did in a task, in columns, with one sum of their updates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from broker_fl.coordination.averaging import Means
from broker_fl.wire.messages import GroupResult, TaskRef, UpdateManifest, Weighting

Column = npt.NDArray[np.float64]


@dataclass(slots=True, kw_only=True)
class Share:
    """All pages of a ``group_result``."""

    group: str
    task: TaskRef
    id: str
    pages: tuple[GroupResult, ...]
    learners: tuple[str, ...]
    failed: dict[str, str]
    """Learner that could not do the task → why."""
    update: UpdateManifest | None
    is_folded: bool = False
    """Its sum is in the round's."""
    _columns: dict[str, Column] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """Group and id: another group may have drawn the same."""
        return self.group, self.id

    @classmethod
    def of(cls, pages: Sequence[GroupResult]) -> Share:
        """Put the pages together, of which there is at least one."""
        first = pages[0]
        return cls(
            group=first.group,
            task=first.task,
            id=first.share,
            pages=tuple(pages),
            learners=tuple(learner for page in pages for learner in page.learners),
            failed={
                learner: reason
                for page in pages
                for learner, reason in zip(page.failed, page.reasons, strict=True)
            },
            update=first.update,
        )

    def column(self, name: str) -> Column:
        """One of ``GroupColumns.COLUMNS``, a value for each of ``learners``."""
        if name not in self._columns:
            parts = [_spread(getattr(page, name), len(page.learners), 0.0) for page in self.pages]
            self._columns[name] = np.concatenate(parts)
        return self._columns[name]

    def metrics(self, kind: str) -> dict[str, Column]:
        """Those of training (``metrics``), or of ``evaluation``; NaN where a learner has none."""
        names = dict.fromkeys(name for page in self.pages for name in getattr(page, kind))
        return {
            name: np.concatenate(
                [
                    _spread(getattr(page, kind).get(name, ()), len(page.learners), np.nan)
                    for page in self.pages
                ]
            )
            for name in names
        }

    def weights(self, weighting: Weighting) -> Column:
        """What each learner's update counts in the sum."""
        match weighting:
            case "examples":
                return self.column("num_examples")
            case "steps":
                return self.column("num_steps")
            case "equal":
                return np.ones(len(self.learners))

    def add_metrics(self, means: Means, weighting: Weighting) -> None:
        """Of training, by what each update counts in the sum."""
        means.add_columns(self.metrics("metrics"), self.weights(weighting))

    def add_evaluation(self, means: Means) -> tuple[int, int]:
        """By examples; how many learners evaluated, and on how many examples, comes back."""
        columns, examples = self.metrics("evaluation"), self.column("evaluation_examples")
        means.add_columns(columns, np.maximum(examples, 1.0))
        return (len(self.learners), int(examples.sum())) if columns else (0, 0)

    def problem(self, paced: Sequence[int | None], wanted: object) -> str | None:
        """Why the sum is refused; None if nothing speaks against it. As ``checking.problem_of``.

        Args:
            paced: of each of ``learners``.
            wanted: of all of them.
        """
        for name, values in self.metrics("metrics").items():
            if np.isinf(values).any():
                learner = self.learners[int(np.argmax(np.isinf(values)))]
                return f"training metric {name!r} of {learner} is not finite: the training diverged"
        if (self.column("num_examples") < 1).any():
            learner = self.learners[int(np.argmin(self.column("num_examples")))]
            return f"the update of {learner} was trained on no example, so it has no weight"
        wanted = wanted if isinstance(wanted, int) else 0
        done = self.column("num_steps")
        own = np.array([-1 if steps is None else steps for steps in paced])
        wrong = np.where(own >= 0, done != own, (done != 0) & (done != wanted) & (wanted > 0))
        if wrong.any():
            place = int(np.argmax(wrong))
            steps = int(own[place]) if own[place] >= 0 else wanted
            return (
                f"the task of {self.learners[place]} asked for {steps} optimiser steps, it reports "
                f"{int(done[place])}"
            )
        return None

    def rows(self, names: Iterable[str]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Learners, and values of the named columns."""
        columns = {name: self.column(name).tolist() for name in names}
        for place, learner in enumerate(self.learners):
            yield learner, {name: values[place] for name, values in columns.items()}


def _spread(values: Sequence[float], length: int, empty: float) -> Column:
    """A column of the wire with a value for each learner."""
    if len(values) == length:
        return np.array(values, np.float64)
    return np.full(length, values[0] if values else empty)
