"""Settings of a job that are right each for itself and wrong together; each says field, value and reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from broker_fl.wire.fields import MAX_PARAMETERS
from broker_fl.wire.frames import brief
from broker_fl.wire.pacing import Aimd
from broker_fl.wire.protocols import Asynchronous, Rounds, SemiSynchronous
from broker_fl.wire.rules import (
    PROXIMAL_MU,
    FedBuff,
    FedProx,
    PerUpdate,
    QFedAvg,
    Robust,
    Scaffold,
    TreeBagging,
)
from broker_fl.wire.selectors import OwnSelector, SelectAll, Selecting, SelectPowerOfChoice, Sized

if TYPE_CHECKING:
    from broker_fl.wire.job import JobSpec


def first_contradiction(spec: JobSpec) -> str | None:
    """The first one in words; None if there is none."""
    return next((text for check in _CHECKS if (text := check(spec)) is not None), None)


def round_setting_without_rounds(protocol: Mapping[str, object]) -> str | None:
    """A setting of rounds that an asynchronous protocol was given: better told than as an unknown field."""
    if protocol.get("name") != Asynchronous.model_fields["name"].default:
        return None
    found = (
        name for name in Rounds.model_fields if name in protocol and name not in Asynchronous.model_fields
    )
    if (name := next(found, None)) is None:
        return None
    return (
        f"'protocol.{name}' = {brief(protocol[name])}: the protocol 'asynchronous' has no rounds, and this "
        "is a setting of rounds"
    )


def _nothing_measures_the_target(spec: JobSpec) -> str | None:
    if spec.termination.target is not None and not spec.evaluate:
        return "'termination.target' needs 'evaluate' to be true: nothing measures the metric otherwise"
    return None


def _nothing_measures_the_loss(spec: JobSpec) -> str | None:
    if isinstance(spec.rule, QFedAvg) and not spec.evaluate:
        return "the rule 'qfedavg' needs 'evaluate' to be true: it weighs learners by their loss"
    if isinstance(spec.selector, SelectPowerOfChoice) and not spec.evaluate:
        return "the selector 'power_of_choice' needs 'evaluate' to be true: it goes by the learners' loss"
    return None


def _two_proximal_terms(spec: JobSpec) -> str | None:
    if isinstance(spec.rule, FedProx) and PROXIMAL_MU in spec.parameters:
        return f"'rule.mu' and 'parameters.{PROXIMAL_MU}' are the same: give one of them"
    return None


def _too_many_parameters(spec: JobSpec) -> str | None:
    if len(spec.task_parameters) > MAX_PARAMETERS:
        return f"'rule.mu' is one parameter more, and there are {MAX_PARAMETERS} already"
    return None


def _rule_of_the_other_protocol(spec: JobSpec) -> str | None:
    rule, protocol = spec.rule.name, spec.protocol.name
    if isinstance(spec.rule, PerUpdate) and isinstance(spec.protocol, Rounds):
        return f"the rule {rule!r} needs 'protocol.name' = 'asynchronous', not {protocol!r}: it has no rounds"
    if not isinstance(spec.rule, PerUpdate) and isinstance(spec.protocol, Asynchronous):
        return (
            f"the rule {rule!r} combines the updates of one round, and the protocol 'asynchronous' has none: "
            "its rules are 'fedasync', 'fedbuff' and 'fedrec'"
        )
    return None


def _rounds_without_rounds(spec: JobSpec) -> str | None:
    if not isinstance(spec.protocol, Asynchronous) or spec.termination.rounds is None:
        return None
    given = "termination" in spec.model_fields_set
    what = f"'termination.rounds' = {spec.termination.rounds}" if given else "'termination' is missing"
    return (
        f"{what}: the protocol 'asynchronous' has no rounds; give 'termination.versions', "
        "'termination.updates' or 'termination.wall_clock_s'"
    )


def _choosing_without_rounds(spec: JobSpec) -> str | None:
    if isinstance(spec.protocol, Asynchronous) and not isinstance(spec.selector, SelectAll):
        return (
            f"'selector.name' = {spec.selector.name!r} chooses the cohort of a round, and the protocol "
            "'asynchronous' has none: give 'protocol.max_concurrent'"
        )
    if isinstance(spec.protocol, Asynchronous) and spec.selector.exclude_after is not None:
        return (
            f"'selector.exclude_after' = {spec.selector.exclude_after} leaves learners out for some rounds, "
            "and the protocol 'asynchronous' has none: give 'protocol.max_failures'"
        )
    return None


def _buffer_that_never_fills(spec: JobSpec) -> str | None:
    rule, protocol = spec.rule, spec.protocol
    if not (isinstance(rule, FedBuff) and isinstance(protocol, Asynchronous)):
        return None
    if rule.buffer_size > protocol.min_learners:
        return (
            f"'rule.buffer_size' = {rule.buffer_size} is above 'protocol.min_learners' = "
            f"{protocol.min_learners}: each learner is in a buffer once, so that it might never be full"
        )
    return None


def _work_that_is_set_twice(spec: JobSpec) -> str | None:
    if not isinstance(spec.pacing, Aimd):
        return None
    if isinstance(spec.protocol, SemiSynchronous):
        return "'pacing.name' = 'aimd' and the protocol 'semi_synchronous' both set the learners' work"
    if "steps" in spec.parameters:
        return "'parameters.steps' and 'pacing.name' = 'aimd' both set the learners' work: give one of them"
    if spec.pacing.target_s is None and spec.protocol.deadline_s is None:
        return "'pacing.name' = 'aimd' needs 'pacing.target_s' or 'protocol.deadline_s': else nobody is late"
    return None


def _pacing_out_of_its_bounds(spec: JobSpec) -> str | None:
    pacing, epochs, deadline_s = spec.pacing, spec.parameters.get("epochs"), spec.protocol.deadline_s
    if not isinstance(pacing, Aimd):
        return None
    if isinstance(epochs, int) and not pacing.min_epochs <= epochs <= pacing.max_epochs:
        return (
            f"'parameters.epochs' = {epochs}, with which learners begin, is not from 'pacing.min_epochs' = "
            f"{pacing.min_epochs} to 'pacing.max_epochs' = {pacing.max_epochs}"
        )
    if pacing.target_s is not None and deadline_s is not None and deadline_s < pacing.target_s:
        return (
            f"'pacing.target_s' = {pacing.target_s:g} is beyond 'protocol.deadline_s' = {deadline_s:g}: "
            "nobody could be late and yet deliver"
        )
    return None


def _nobody_else_to_ask(spec: JobSpec) -> str | None:
    if not (isinstance(spec.protocol, Rounds) and spec.protocol.over_selection):
        return None
    everybody = isinstance(spec.selector, SelectAll)
    if not everybody and getattr(spec.selector, "fraction", None) != 1.0:
        return None
    which = "'selector.name' = 'all'" if everybody else "'selector.fraction' = 1"
    return (
        f"'protocol.over_selection' = {spec.protocol.over_selection} needs a selector that leaves learners "
        f"over: {which} chooses everybody"
    )


def _quorum_beyond_the_cohort(spec: JobSpec) -> str | None:
    protocol, count = spec.protocol, getattr(spec.selector, "count", None)
    if not isinstance(protocol, Rounds) or not isinstance(protocol.quorum, int) or count is None:
        return None
    if protocol.quorum > count:
        return (
            f"'protocol.quorum' = {protocol.quorum} is above 'selector.count' = {count}: no round's cohort "
            "could reach it"
        )
    return None


def _robust_rule_with_a_cohort_of_any_size(spec: JobSpec) -> str | None:
    if not (isinstance(spec.rule, Robust) and isinstance(spec.protocol, Rounds)):
        return None
    if isinstance(spec.protocol.quorum, int):
        return None
    cause = _any_size(spec.selector)
    if cause is None:
        return None
    return (
        f"{cause}: the rule {spec.rule.name!r} with 'rule.max_attackers' f = {spec.rule.max_attackers} needs "
        f"{spec.rule.updates_needed()} updates ({spec.rule.formula}), so give 'protocol.quorum' as a "
        "count of at least so many"
    )


def _any_size(selector: Selecting) -> str | None:
    """Why a cohort may be as small as one learner, however many are there; None if it may not."""
    if selector.exclude_after is not None:
        return f"'selector.exclude_after' = {selector.exclude_after} may leave very few learners"
    if isinstance(selector, OwnSelector):
        return "'selector.name' = 'own' may choose very few learners"
    return None


def _too_few_for_a_robust_rule(spec: JobSpec) -> str | None:
    rule = spec.rule
    if not isinstance(rule, Robust) or not isinstance(spec.protocol, Rounds):
        return None
    for field, value, num_updates in _fewest_updates(spec.protocol, spec):
        if num_updates < rule.updates_needed():
            return (
                f"'{field}' = {value:g} is too small: a round could end with too few updates "
                f"({num_updates}); the rule {rule.name!r} with 'rule.max_attackers' f = "
                f"{rule.max_attackers} needs {rule.updates_needed()} ({rule.formula})"
            )
    return None


def _values_where_changes_are_needed(spec: JobSpec) -> str | None:
    if spec.transfer.form != "values":
        return None
    if spec.rule_takes_changes:
        return f"'transfer.form' = 'values': the rule {spec.rule.name!r} takes changes"
    if spec.transfer.needs_changes:
        return f"'transfer.form' = 'values': {_coarse(spec)} would lose too much of values; leave it out"
    return None


def _changes_where_the_rule_has_none(spec: JobSpec) -> str | None:
    if spec.form != "changes" or not isinstance(spec.rule, Scaffold | TreeBagging):
        return None
    why = (
        "its updates carry changes of control variates, which must arrive as the learner keeps them"
        if isinstance(spec.rule, Scaffold)
        else "trees are bytes, which have no changes and are not encoded"
    )
    cause = "'transfer.form' = 'changes'" if spec.transfer.form else _coarse(spec)
    return f"{cause} is not for the rule {spec.rule.name!r}: {why}"


def _coarse(spec: JobSpec) -> str:
    field = "encoding" if spec.has_residuals else "broadcast"
    return f"'transfer.{field}' = {getattr(spec.transfer, field)!r}"


def _changes_of_versions_that_are_gone(spec: JobSpec) -> str | None:
    protocol = spec.protocol
    if not isinstance(protocol, Asynchronous) or spec.form != "changes" or spec.rule_takes_changes:
        return None
    if protocol.max_staleness is not None and protocol.max_staleness < spec.keep_versions:
        return None
    cause = "'transfer.form' = 'changes'" if spec.transfer.form else _coarse(spec)
    return (
        f"{cause} has updates of the rule {spec.rule.name!r} added to the version that they began from, "
        f"which must be kept until then: give 'protocol.max_staleness' below 'keep_versions' = "
        f"{spec.keep_versions}"
    )


def fewest_updates(spec: JobSpec) -> int:
    """With how few updates the job lets a round end; 1 where there are no rounds."""
    if not isinstance(spec.protocol, Rounds):
        return 1
    return min(count for _, _, count in _fewest_updates(spec.protocol, spec))


def _fewest_updates(protocol: Rounds, spec: JobSpec) -> Iterator[tuple[str, float, int]]:
    """Field, value, and with how few updates it lets a round end."""
    quorum, cohort, selector = protocol.quorum, protocol.min_learners, spec.selector
    if isinstance(quorum, int):
        cohort = max(cohort, quorum)
        yield "protocol.quorum", quorum, quorum
    else:
        yield "protocol.min_learners", cohort, cohort
    if isinstance(selector, Sized) and selector.count is not None:
        cohort = min(cohort, selector.count)
        yield "selector.count", selector.count, selector.count
    elif isinstance(quorum, float) and (smallest := selector.smallest_cohort(cohort)) < cohort:
        fraction = selector.fraction if isinstance(selector, Sized) else None
        field = "protocol.min_learners" if fraction is None else "selector.fraction"
        yield field, fraction or cohort, smallest
        cohort = smallest
    if isinstance(quorum, float):
        yield "protocol.quorum", quorum, _share(quorum, cohort)


def _share(share: float, count: int) -> int:
    return max(1, math.ceil(share * count - 1e-9))


_CHECKS: tuple[Callable[[JobSpec], str | None], ...] = (
    _nothing_measures_the_target,
    _nothing_measures_the_loss,
    _two_proximal_terms,
    _too_many_parameters,
    _rule_of_the_other_protocol,
    _rounds_without_rounds,
    _choosing_without_rounds,
    _buffer_that_never_fills,
    _work_that_is_set_twice,
    _pacing_out_of_its_bounds,
    _nobody_else_to_ask,
    _quorum_beyond_the_cohort,
    _robust_rule_with_a_cohort_of_any_size,
    _too_few_for_a_robust_rule,
    _values_where_changes_are_needed,
    _changes_where_the_rule_has_none,
    _changes_of_versions_that_are_gone,
)
