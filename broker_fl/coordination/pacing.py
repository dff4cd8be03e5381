"""Pacing: how much work each learner is given, as task parameters ``epochs`` or ``steps``.

To add a pacer: its settings in ``wire/pacing.py``, a class here, its case in ``make_pacer``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from broker_fl.coordination.cohort import Workload
from broker_fl.coordination.records import Records
from broker_fl.wire.job import JobSpec
from broker_fl.wire.pacing import Aimd
from broker_fl.wire.protocols import SemiSynchronous


class Pacer(Protocol):
    """Sets the work of learners by what their records say."""

    def workloads(self, learners: Collection[str]) -> dict[str, Workload]:
        """What each of a cohort gets; one that is not in the answer gets what the job's parameters say."""
        ...

    def delivered(self, learner: str, task_s: float) -> None:
        """The learner's result came ``task_s`` seconds after its task was sent."""
        ...

    def missed(self, learner: str) -> None:
        """The learner's result did not come in time."""
        ...


class FixedPacer:
    """The job's own parameters, for everybody."""

    def workloads(self, learners: Collection[str]) -> dict[str, Workload]:
        """Nothing is set."""
        return {}

    def delivered(self, learner: str, task_s: float) -> None:
        """Changes nothing."""

    def missed(self, learner: str) -> None:
        """Changes nothing."""


class AimdPacer:
    """Additive increase, multiplicative decrease, as of TCP's window (Chiu and Jain 1989)."""

    def __init__(self, settings: Aimd, records: Records, *, first_epochs: int, target_s: float) -> None:
        self._settings = settings
        self._records = records
        self._first = min(max(first_epochs, settings.min_epochs), settings.max_epochs)
        self._target_s = target_s

    def workloads(self, learners: Collection[str]) -> dict[str, Workload]:
        """``epochs`` of each."""
        return {learner: {"epochs": self._epochs(learner)} for learner in learners}

    def delivered(self, learner: str, task_s: float) -> None:
        """In time: ``increase`` epochs more. Late: as if missed."""
        if task_s > self._target_s:
            self.missed(learner)
        else:
            more = self._epochs(learner) + self._settings.increase
            self._records.of(learner).epochs = min(more, self._settings.max_epochs)

    def missed(self, learner: str) -> None:
        """``decrease`` times as many epochs, rounded down."""
        fewer = int(self._epochs(learner) * self._settings.decrease)
        self._records.of(learner).epochs = max(fewer, self._settings.min_epochs)

    def _epochs(self, learner: str) -> int:
        return self._records.of(learner).epochs or self._first


class SemiSynchronousPacer(FixedPacer):
    """Steps for about the same time on every learner (Stripelis, Thompson, Ambite 2022).

    "Semi-Synchronous Federated Learning for Energy-Efficient Training and Accelerated Convergence in
    Cross-Silo Settings", ACM TIST, section 4::

        t = λ max_k (time per epoch of k)
        steps_k = t / (time per step of k)

    Times are means over a learner's earlier rounds, made anew with every result.
    """

    def __init__(self, settings: SemiSynchronous, records: Records) -> None:
        self._settings = settings
        self._records = records

    def workloads(self, learners: Collection[str]) -> dict[str, Workload]:
        """``steps`` of each that is measured."""
        records = {learner: self._records.of(learner) for learner in learners}
        time_s = self._settings.lam * max((record.epoch_s for record in records.values()), default=0.0)
        found = {
            learner: {"steps": self._clamped(time_s / record.step_s)}
            for learner, record in records.items()
            if record.step_s and time_s
        }
        # Who was too late to be measured gets as little as may be, so that it can be.
        late = (name for name, record in records.items() if record.num_failures and not record.step_s)
        return found | {learner: {"steps": self._settings.min_steps} for learner in late}

    def _clamped(self, steps: float) -> int:
        most = self._settings.max_steps
        whole = max(round(steps), self._settings.min_steps)
        return whole if most is None else min(whole, most)


def make_pacer(spec: JobSpec, records: Records) -> Pacer:
    """The pacer that a job's settings name."""
    if isinstance(spec.protocol, SemiSynchronous):
        return SemiSynchronousPacer(spec.protocol, records)
    if isinstance(spec.pacing, Aimd):
        epochs, target_s = spec.parameters.get("epochs"), spec.pacing.target_s or spec.protocol.deadline_s
        return AimdPacer(
            spec.pacing,
            records,
            first_epochs=epochs if isinstance(epochs, int) else 1,
            target_s=target_s or float("inf"),
        )
    return FixedPacer()
