"""Jobs of all rules: variations of a drawn one."""

from __future__ import annotations

import random
from typing import Any

from broker_fl.wire import rules
from broker_fl.wire.job import JobSpec
from broker_fl.wire.protocols import Asynchronous, Rounds
from broker_fl.wire.selectors import SelectAll


def varied(spec: JobSpec, draw: random.Random, num_learners: int, *, has_groups: bool) -> JobSpec:
    """The job, with another rule or another end in half of all cases."""
    if draw.random() < 0.5:  # models that are one message, with their task
        spec = _changed(spec, transfer={**_given(spec.transfer), "chunk_bytes": 16_384})
    if has_groups:
        return _for_groups(spec, draw)
    if draw.random() < 0.5:
        spec = _with_rule(spec, draw, num_learners)
    return _timed(spec, draw)


def _timed(spec: JobSpec, draw: random.Random) -> JobSpec:
    """With an end by the clock, in some."""
    if draw.random() >= 0.08:
        return spec
    limit = {"wall_clock_s": draw.choice([5.0, 40.0, 150.0])}
    return _changed(spec, termination={**_given(spec.termination), **limit})


def _for_groups(spec: JobSpec, draw: random.Random) -> JobSpec:
    """With a rule that takes sums, and rounds."""
    weighting = draw.choice(["examples", "examples", "steps", "equal"])
    rule = draw.choice(
        [rules.FedAvg(weighting=weighting), rules.FedProx(mu=0.1, weighting=weighting)]  # type: ignore[arg-type]
    )
    if isinstance(spec.protocol, Rounds):
        return _timed(_changed(spec, rule=rule), draw)
    shared = {"transfer": spec.transfer, "evaluate": spec.evaluate, "keep_versions": spec.keep_versions}
    protocol = {
        "quorum": draw.choice([1.0, 0.6, 1]),
        "deadline_s": draw.choice([None, 15.0, 60.0]),
        "max_retries": 100,
    }
    rounds = {"rounds": draw.randint(2, 4)}
    return JobSpec.model_validate({**shared, "protocol": protocol, "rule": rule, "termination": rounds})


def _with_rule(spec: JobSpec, draw: random.Random, num_learners: int) -> JobSpec:
    if isinstance(spec.protocol, Asynchronous):
        newest = rules.FedRec(weighting=draw.choice(["examples", "steps", "equal"]))
        return _changed(spec, rule=newest)
    rule: Any = draw.choice(
        [
            rules.FedAvg(weighting="steps"),
            rules.FedProx(mu=0.1, weighting="equal"),
            rules.FedAdagrad(learning_rate=0.5),
            rules.FedAdam(learning_rate=0.5),
            rules.FedYogi(learning_rate=0.5),
            rules.FedNova(momentum=0.5),
            rules.QFedAvg(learning_rate=0.5),
            rules.NormClipping(max_norm=20.0),
            rules.NormClipping(max_norm=20.0, weighting="examples"),
            *[rules.Scaffold(learning_rate=0.5)] * 5,
            *_robust(num_learners),
        ]
    )
    changes: dict[str, Any] = {"rule": rule}
    if isinstance(rule, rules.QFedAvg):
        changes["evaluate"] = True
    if isinstance(rule, rules.Robust):
        needed = rule.updates_needed()
        changes["protocol"] = {
            **_given(spec.protocol),
            "quorum": draw.randint(needed, num_learners),
            "min_learners": needed,
            "over_selection": 0,
        }
        changes["selector"] = SelectAll()
    return _changed(spec, **changes)


def _robust(num_learners: int) -> list[rules.Robust]:
    """Those that so few learners are enough for."""
    some = [
        rules.Median(),
        rules.TrimmedMean(),
        rules.Krum(),
        rules.Krum(max_attackers=0),
        rules.MultiKrum(max_attackers=0),
        rules.MultiKrum(num_selected=2),
        rules.Bulyan(max_attackers=0),
        rules.GeometricMedian(),
    ]
    return [rule for rule in some if rule.updates_needed() <= num_learners]


def _given(part: Any) -> dict[str, Any]:
    return dict(part.model_dump())


def _changed(spec: JobSpec, **changes: Any) -> JobSpec:
    """Held against all that settings must be together."""
    fields = {name: getattr(spec, name) for name in JobSpec.model_fields}
    return JobSpec.model_validate({**fields, **changes})
