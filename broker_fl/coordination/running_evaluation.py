"""The evaluation of a job without rounds: of each learner the newest, of whichever version that was."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from broker_fl.coordination import signals as s
from broker_fl.coordination.averaging import LatestMean
from broker_fl.coordination.life import Life
from broker_fl.coordination.state import JobState
from broker_fl.wire import events as e
from broker_fl.wire.job import MetricTarget
from broker_fl.wire.messages import Result


class RunningEvaluation:
    """What learners last found out."""

    def __init__(self, target: MetricTarget | None) -> None:
        """``target``: what the job's end may depend on."""
        self._target = target
        self._metric = None if target is None else target.metric
        self._has_target = False
        self._latest = LatestMean()
        self._version = -1
        """The newest that anybody has evaluated."""
        self._mute = set[str]()
        """Those whose last evaluation had no metric."""

    def note(self, result: Result) -> None:
        """A learner has evaluated, or says that it has nothing to tell."""
        if not result.evaluation:
            self._mute.add(result.learner)
        else:
            self._mute.discard(result.learner)
            self._has_target = self._has_target or self._metric in result.evaluation  # be it NaN
            self._latest.add(result.learner, result.evaluation, result.evaluation_examples or 1)
            self._version = max(self._version, result.task.round)

    def remove(self, learner: str) -> None:
        """It is gone: what it found out counts no more."""
        self._latest.remove(learner)

    def target_reached(self, life: Life, learners: Callable[[], Iterable[str]]) -> str | None:
        """How the job's target was reached; None if it was not, or not all ``learners`` have evaluated: the
        first few may be the lucky ones. Who delivers without a metric is not waited for. Nor is it reached by
        one learner alone, if others report the metric.
        """
        reached, target = life.target_reached(), self._target
        if reached is None or target is None or not self._is_of_all(learners()):
            return None
        sign = 1 if target.mode == "max" else -1
        return reached if self._latest.reaches_without_any_one(target.metric, target.value, sign) else None

    def target_unknown(self, life: Life, learners: Callable[[], Iterable[str]]) -> str | None:
        """Why the target can never be reached; None if it can, or not all ``learners`` have evaluated."""
        has_none = self._target is not None and not self._has_target and len(self._latest) > 0
        if not has_none or not self._is_of_all(learners()):
            return None
        return life.target_unknown(set(self._latest.mean()))

    def _is_of_all(self, learners: Iterable[str]) -> bool:
        """Whether each of them has evaluated, but for those that report no metric."""
        return all(learner in self._latest or learner in self._mute for learner in learners)

    def note_version(self, state: JobState) -> s.Actions:
        """The mean is the evaluation of the newest version, for want of a better one."""
        metrics = self._latest.mean()
        if not metrics:
            return []
        state.note_evaluation(metrics)
        evaluated = e.VersionEvaluated(
            job=state.job,
            round=state.round,
            version=min(self._version, state.version),
            metrics=metrics,
            num_learners=len(self._latest),
            num_examples=self._latest.total_weight,
        )
        return [s.Emit(evaluated)]
