"""What has come of tasks and rounds, as events."""

from __future__ import annotations

from collections.abc import Mapping

from broker_fl.coordination import signals as s
from broker_fl.coordination.averaging import Means
from broker_fl.coordination.cohort import Assignment, Cohort
from broker_fl.coordination.state import JobState
from broker_fl.wire import events as e
from broker_fl.wire.fields import text
from broker_fl.wire.messages import Result, TaskRef
from broker_fl.wire.rules import Summable


def task_finished(result: Result) -> e.TaskFinished:
    """A learner's result."""
    return e.TaskFinished(
        job=result.task.job,
        round=result.task.round,
        learner=result.learner,
        num_examples=result.num_examples,
        num_steps=result.num_steps,
        num_epochs=result.num_epochs,
        metrics=result.metrics,
        evaluation=result.evaluation,
        timings=result.timings,
        peak_memory_bytes=result.peak_memory_bytes,
    )


def update_folded(signal: s.UpdateWasFolded, staleness: int) -> e.UpdateFolded:
    """A learner's update is in the sum."""
    return e.UpdateFolded(
        job=signal.task.job,
        round=signal.task.round,
        learner=signal.learner,
        weight=signal.weight,
        staleness=staleness,
        num_bytes=signal.num_bytes,
        num_messages=signal.num_messages,
        upload_s=signal.upload_s,
        fold_s=signal.fold_s,
    )


def group_missed(group: str, task: TaskRef, outcome: e.Missed, why: Mapping[str, str]) -> e.GroupMissed:
    """Tasks of members of a group came to nothing, each with the reason."""
    reasons = tuple(why.values())
    return e.GroupMissed(
        job=task.job,
        round=task.round,
        group=group,
        outcome=outcome,
        learners=tuple(why),
        reasons=tuple(map(text, reasons[:1] if len(set(reasons)) == 1 else reasons)),
    )


def reported_metrics(cohort: Cohort) -> set[str]:
    """Names of all metrics with which members have evaluated."""
    results = [part.result for part in cohort.values() if part.result is not None]
    names = {name for result in results for name in result.evaluation}
    return names | {name for share in cohort.shares.values() for name in share.metrics("evaluation")}


def note_evaluation(state: JobState) -> s.Actions:
    """Average what the cohort found out about the version it was given."""
    cohort, means, num_learners, num_examples = state.cohort, Means(), 0, 0
    for part in cohort.values():
        if (result := part.result) is not None and result.evaluation:
            means.add(result.evaluation, result.evaluation_examples or 1)
            num_learners, num_examples = num_learners + 1, num_examples + result.evaluation_examples
    for share in cohort.shares.values():
        learners, examples = share.add_evaluation(means)
        num_learners, num_examples = num_learners + learners, num_examples + examples
    if not num_learners:
        return []
    state.note_evaluation(means.means())
    evaluated = e.VersionEvaluated(
        job=state.job,
        round=state.round,
        version=state.version,
        metrics=state.evaluation,
        num_learners=num_learners,
        num_examples=num_examples,
    )
    return [s.Emit(evaluated)]


def version_committed(
    state: JobState, signal: s.VersionWasStored, parts: Mapping[str, Assignment], now: float
) -> e.VersionCommitted:
    """A new version is made of the updates of these members."""
    means = Means()
    for part in parts.values():
        if part.result is not None:
            means.add(part.result.metrics, part.weight)
    rule = state.spec.rule
    for share in state.cohort.shares.values():
        if share.is_folded and isinstance(rule, Summable):
            share.add_metrics(means, rule.weighting)
    return e.VersionCommitted(
        job=state.job,
        round=state.round,
        version=signal.version,
        parent=state.version,
        rule=rule.name,
        digest=signal.digest,
        contributors=tuple(sorted(parts)),
        total_weight=signal.total_weight,
        used=None if signal.used is None else dict(signal.used),
        metrics=means.means(),
        round_s=max(0.0, now - state.round_started_at),
        aggregate_s=signal.aggregate_s,
        store_s=signal.store_s,
        memory_bytes=signal.memory_bytes,
    )
