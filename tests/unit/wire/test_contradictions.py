"""Settings that are right each for itself and wrong together, refused with field, value and reason."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from broker_fl.wire.job import JobSpec

ASYNC: dict[str, Any] = {
    "protocol": {"name": "asynchronous"},
    "rule": {"name": "fedasync"},
    "termination": {"updates": 10},
}
BUFFERED: dict[str, Any] = {
    **ASYNC,
    "protocol": {"name": "asynchronous", "min_learners": 3},
    "rule": {"name": "fedbuff", "buffer_size": 3},
}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {**ASYNC, "protocol": {"name": "asynchronous", "quorum": 0.5}},
            "'protocol.quorum' = 0.5: the protocol 'asynchronous' has no rounds",
        ),
        (
            {"protocol": {"quorum": 5}, "selector": {"name": "random", "count": 3}},
            "'protocol.quorum' = 5 is above 'selector.count' = 3",
        ),
        (
            {"pacing": {"name": "aimd", "target_s": 1.0}, "parameters": {"epochs": 20}},
            "'parameters.epochs' = 20",
        ),
        (
            {"pacing": {"name": "aimd", "target_s": 5.0}, "protocol": {"deadline_s": 1.0}},
            "'pacing.target_s' = 5 is beyond 'protocol.deadline_s' = 1",
        ),
        (
            {"protocol": {"over_selection": 2}, "selector": {"name": "random", "fraction": 1.0}},
            "'selector.fraction' = 1 chooses everybody",
        ),
        ({**ASYNC, "protocol": {"name": "asynchronous", "over_selection": 1}}, "over_selection"),
        ({**ASYNC, "rule": {"name": "fedavg"}}, "'fedavg' combines the updates of one round"),
        ({"rule": {"name": "fedasync"}}, "'fedasync' needs 'protocol.name' = 'asynchronous'"),
        ({**ASYNC, "rule": {"name": "median"}}, "its rules are 'fedasync', 'fedbuff' and 'fedrec'"),
        ({"rule": {"name": "fedrec"}}, "'fedrec' needs 'protocol.name' = 'asynchronous'"),
        ({**ASYNC, "rule": {"name": "fedrec", "weighting": "loss"}}, "'steps' or 'equal'"),
        ({"rule": {"name": "fedbuff"}, "protocol": {"name": "semi_synchronous"}}, "not 'semi_synchronous'"),
        ({**ASYNC, "termination": {"rounds": 3}}, "'termination.rounds' = 3"),
        ({"protocol": {"name": "asynchronous"}, "rule": {"name": "fedasync"}}, "'termination' is missing"),
        ({**ASYNC, "selector": {"name": "random", "count": 2}}, "give 'protocol.max_concurrent'"),
        ({**ASYNC, "rule": {"name": "fedbuff", "buffer_size": 3}}, "'rule.buffer_size' = 3 is above"),
        ({**ASYNC, "rule": {"name": "fedasync", "alpha": 0.0}}, "greater than 0"),
        ({**ASYNC, "rule": {"name": "fedasync", "alpha": 1.5}}, "less than or equal to 1"),
        ({**ASYNC, "rule": {"name": "fedasync", "staleness": {"name": "linear"}}}, "'polynomial'"),
        ({**ASYNC, "protocol": {"name": "asynchronous", "max_staleness": -1}}, "greater than or equal to 0"),
        ({"protocol": {"name": "semi_synchronous", "lam": 0.0}}, "greater than 0"),
        ({"protocol": {"name": "semi_synchronous", "lam": -1.0}}, "greater than 0"),
        (
            {"protocol": {"name": "semi_synchronous", "min_steps": 9, "max_steps": 3}},
            "'max_steps' = 3 is below 'min_steps' = 9",
        ),
        ({"pacing": {"name": "aimd"}}, "'pacing.target_s' or 'protocol.deadline_s'"),
        ({"pacing": {"name": "aimd", "target_s": 1.0, "decrease": 1.0}}, "less than 1"),
        (
            {"pacing": {"name": "aimd", "target_s": 1.0, "min_epochs": 5, "max_epochs": 2}},
            "'max_epochs' = 2 is below 'min_epochs' = 5",
        ),
        (
            {"pacing": {"name": "aimd", "target_s": 1.0}, "protocol": {"name": "semi_synchronous"}},
            "both set the learners' work",
        ),
        (
            {"pacing": {"name": "aimd", "target_s": 1.0}, "parameters": {"steps": 5}},
            "'parameters.steps'",
        ),
        ({"protocol": {"over_selection": 2}}, "'selector.name' = 'all' chooses everybody"),
        ({"rule": {"name": "krum", "max_attackers": 2}}, "needs 7 (2 f + 3)"),
        (
            {"rule": {"name": "median"}, "protocol": {"name": "semi_synchronous", "min_learners": 2}},
            "needs 3",
        ),
        ({"rule": {"name": "qfedavg", "learning_rate": 0.1}, "evaluate": False}, "needs 'evaluate'"),
        (
            {"rule": {"name": "fedprox", "mu": 0.1}, "parameters": {"proximal_mu": 0.2}},
            "are the same: give one of them",
        ),
        ({"termination": {"target": {"metric": "a", "value": 1.0}}, "evaluate": False}, "nothing measures"),
        (
            {"transfer": {"encoding": "int8", "form": "values"}},
            "'transfer.form' = 'values': 'transfer.encoding' = 'int8' would lose too much of values",
        ),
        ({"transfer": {"broadcast": "int8", "form": "values"}}, "'transfer.broadcast' = 'int8' would lose"),
        ({**BUFFERED, "transfer": {"form": "values"}}, "the rule 'fedbuff' takes changes"),
        (
            {"rule": {"name": "scaffold"}, "transfer": {"encoding": "topk/10"}},
            "'transfer.encoding' = 'topk/10' is not for the rule 'scaffold': its updates carry changes of",
        ),
        (
            {"rule": {"name": "scaffold"}, "transfer": {"form": "changes"}},
            "'transfer.form' = 'changes' is not",
        ),
        ({"rule": {"name": "tree_bagging"}, "transfer": {"encoding": "int8"}}, "trees are bytes"),
        (
            {"rule": {"name": "tree_bagging"}, "transfer": {"broadcast": "int8"}},
            "'transfer.broadcast' = 'int8'",
        ),
        (
            {**ASYNC, "transfer": {"encoding": "int8"}},
            "give 'protocol.max_staleness' below 'keep_versions' = 3",
        ),
        (
            {
                **ASYNC,
                "protocol": {"name": "asynchronous", "max_staleness": 3},
                "transfer": {"form": "changes"},
            },
            "'transfer.form' = 'changes' has updates of the rule 'fedasync' added",
        ),
    ],
)
def test_what_contradicts_itself_is_refused_with_field_value_and_reason(
    given: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        JobSpec.model_validate(given)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        ASYNC,
        BUFFERED,
        {**ASYNC, "pacing": {"name": "aimd", "target_s": 5.0}},
        {**ASYNC, "termination": {"wall_clock_s": 5.0}},
        {"pacing": {"name": "aimd"}, "protocol": {"deadline_s": 10.0}},
        {"protocol": {"over_selection": 2}, "selector": {"name": "random", "fraction": 0.5}},
        {"protocol": {"quorum": 0.5}},
        {"termination": {"versions": 3}},
        {"transfer": {"encoding": "int8", "broadcast": "int8", "form": "changes"}},
        {"transfer": {"encoding": "topk/1000000", "broadcast": "bfloat16"}, "rule": {"name": "fedadam"}},
        {"transfer": {"encoding": "bfloat16", "form": "changes"}},
        {"transfer": {"encoding": "bfloat16"}, "rule": {"name": "scaffold"}},
        {**BUFFERED, "transfer": {"encoding": "topk/100"}},
        {
            **ASYNC,
            "protocol": {"name": "asynchronous", "max_staleness": 2},
            "transfer": {"encoding": "int8"},
        },
    ],
)
def test_what_goes_together_is_taken_and_comes_back_the_same(given: dict[str, Any]) -> None:
    spec = JobSpec.model_validate(given)
    assert JobSpec.model_validate(spec.model_dump()) == spec
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("transfer", "broadcast", "form", "has_residuals"),
    [
        ({}, "raw", "values", False),
        ({"encoding": "float16"}, "float16", "values", False),
        ({"encoding": "float16", "broadcast": "raw"}, "raw", "values", False),
        ({"encoding": "bfloat16", "form": "changes"}, "bfloat16", "changes", False),
        ({"encoding": "int8"}, "raw", "changes", True),
        ({"encoding": "topk/50", "broadcast": "float16"}, "float16", "changes", True),
        ({"broadcast": "int8"}, "int8", "changes", False),
    ],
)
def test_how_versions_and_updates_travel_follows_from_the_encodings(
    transfer: dict[str, Any], broadcast: str, form: str, has_residuals: bool
) -> None:
    spec = JobSpec.model_validate({"transfer": transfer})
    assert (spec.transfer.of_versions, spec.form, spec.has_residuals) == (broadcast, form, has_residuals)
