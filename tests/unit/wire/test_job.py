"""Job settings: what is let in, and what the error says of the rest."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from pydantic import ValidationError

from broker_fl.wire.fields import MAX_INT, MAX_PARAMETERS
from broker_fl.wire.job import JobSpec
from broker_fl.wire.protocols import Synchronous
from broker_fl.wire.selectors import SelectAll, SelectRandom


def test_a_job_of_defaults_is_a_job() -> None:
    spec = JobSpec()
    assert spec.termination.rounds == 10
    assert isinstance(spec.selector, SelectAll)


def quorum_of(spec: JobSpec) -> float:
    assert isinstance(spec.protocol, Synchronous)
    return spec.protocol.quorum


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"protocol": {"quorum": 1}},
        {"protocol": {"quorum": 1.0}},
        {"protocol": {"quorum": 0.5, "deadline_s": 5, "max_wait_s": 60.0}},
        {"selector": {"name": "random", "fraction": 0.1, "seed": 3}},
        {"selector": {"name": "random", "count": 3}},
        {"termination": {"wall_clock_s": 60.0}},
        {"termination": {"target": {"metric": "loss", "value": 0.1, "mode": "min"}}},
        {"parameters": {"epochs": 1, "lr": 0.1, "on": True, "name": "x", "none": None}},
        {"transfer": {"encoding": "bfloat16", "chunk_bytes": 4096}},
    ],
    ids=str,
)
def test_a_job_comes_back_from_msgpack_and_json_with_every_type(given: dict[str, Any]) -> None:
    spec = JobSpec.model_validate(given)
    unpacked = msgpack.unpackb(msgpack.packb(spec.model_dump()), use_list=False)
    again, from_json = JobSpec.model_validate(unpacked), JobSpec.model_validate_json(spec.model_dump_json())
    assert again == from_json == spec
    assert type(quorum_of(again)) is type(quorum_of(from_json)) is type(quorum_of(spec))
    assert {k: type(v) for k, v in again.parameters.items()} == {
        k: type(v) for k, v in spec.parameters.items()
    }


def test_a_quorum_is_a_count_as_an_integer_and_a_share_as_a_float() -> None:
    assert type(quorum_of(JobSpec.model_validate({"protocol": {"quorum": 1}}))) is int
    assert type(quorum_of(JobSpec.model_validate({"protocol": {"quorum": 1.0}}))) is float


@pytest.mark.parametrize(
    ("given", "where", "words"),
    [
        ({"rounds": 5}, "rounds", "Extra inputs are not permitted"),
        ({"termination": {"round": 5}}, "termination.round", "Extra inputs are not permitted"),
        ({"name": "my job"}, "name", "'my job' must be 1 to 64 letters, digits, '-' or '_'"),
        ({"name": "x" * 1000}, "name", "must be 1 to 64 letters"),
        ({"protocol": {"name": "magic"}}, "protocol", "'synchronous'"),
        ({"protocol": {"quorum": 0.0}}, "protocol", "greater than 0"),
        ({"protocol": {"quorum": 1.5}}, "protocol", "less than or equal to 1"),
        ({"protocol": {"quorum": 0}}, "protocol", "greater than"),
        ({"protocol": {"deadline_s": 0.0}}, "protocol.synchronous.deadline_s", "greater than 0"),
        ({"protocol": {"deadline_s": float("inf")}}, "protocol.synchronous.deadline_s", "finite number"),
        ({"protocol": {"min_learners": "2"}}, "protocol.synchronous.min_learners", "valid integer"),
        ({"protocol": {"min_learners": True}}, "protocol.synchronous.min_learners", "valid integer"),
        ({"selector": {"name": "best"}}, "selector", "'all', 'random'"),
        ({"selector": {"name": "random"}}, "selector.random", "give either 'fraction' or 'count'"),
        ({"selector": {"name": "random", "fraction": 0.5, "count": 2}}, "selector.random", "give either"),
        (
            {"selector": {"name": "random", "count": 1, "seed": 2**64}},
            "selector.random.seed",
            "less than or equal",
        ),
        ({"termination": {}}, "termination", "the job never ends"),
        ({"termination": {"rounds": 0}}, "termination.rounds", "greater than or equal to 1"),
        ({"termination": {"rounds": 2**63}}, "termination.rounds", f"less than or equal to {MAX_INT}"),
        (
            {"termination": {"target": {"metric": "", "value": 1.0}}},
            "termination.target.metric",
            "at least 1",
        ),
        (
            {"termination": {"target": {"metric": "a", "value": float("nan")}}},
            "termination.target.value",
            "finite",
        ),
        (
            {"parameters": {"x": [1]}},
            "parameters.x",
            "a list is neither a text, a number, a boolean nor nothing",
        ),
        ({"parameters": {"x": "\ud800"}}, "parameters.x", "surrogates not allowed"),
        ({"parameters": {"x": 2**63}}, "parameters.x", "does not fit into a signed 64-bit integer"),
        ({"parameters": {"x": float("nan")}}, "parameters.x", "nan is not a finite number"),
        ({"parameters": {"x": "y" * 4001}}, "parameters.x", "4001 characters; at most 4000"),
        ({"parameters": {f"p{i}": 0 for i in range(MAX_PARAMETERS + 1)}}, "parameters", "at most 128"),
        (
            {"transfer": {"encoding": "zip"}},
            "transfer.encoding",
            "'raw', 'float32', 'float16', 'bfloat16', 'int8'",
        ),
        ({"transfer": {"encoding": "topk/1"}}, "transfer.encoding", "2 to 1000000"),
        ({"transfer": {"broadcast": "topk/10"}}, "transfer.broadcast", "it is for updates"),
        ({"transfer": {"chunk_bytes": 100}}, "transfer.chunk_bytes", "greater than or equal to 4096"),
        ({"transfer": {"chunk_bytes": 4_000_000}}, "transfer.chunk_bytes", "less than or equal to 3500000"),
        ({"keep_versions": 0}, "keep_versions", "greater than or equal to 1"),
        (
            {"termination": {"target": {"metric": "a", "value": 1.0}}, "evaluate": False},
            "",
            "'termination.target' needs 'evaluate'",
        ),
    ],
    ids=lambda given: str(given)[:60],
)
def test_a_wrong_setting_is_refused_by_its_name_with_what_is_allowed(
    given: Any, where: str, words: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(given)
    errors = caught.value.errors()
    assert any(
        ".".join(map(str, error["loc"])).startswith(where) and words in error["msg"] for error in errors
    ), errors


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        JobSpec().name = "another"  # type: ignore[misc]
    assert SelectRandom(count=2) == SelectRandom(name="random", count=2, seed=0)
