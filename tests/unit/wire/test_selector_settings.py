"""Settings of selectors: what is let in, what contradicts what, and how small they let a round be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl.coordination.selection import make_selector
from broker_fl.errors import SettingError
from broker_fl.interfaces import Member, Record
from broker_fl.jobfile import make_spec, read_job
from broker_fl.wire.conditions import AnyCondition, Range
from broker_fl.wire.job import JobSpec
from broker_fl.wire.selectors import SelectPowerOfChoice, SelectSlowAware

EACH: list[dict[str, Any]] = [
    {"name": "all", "where": {"region": ["eu", "uk"], "gpu": True, "num_examples": {"min": 100}}},
    {"name": "random", "count": 3, "seed": 5, "exclude_after": 3},
    {"name": "rotation", "fraction": 0.25, "exclude_after": 1, "exclude_rounds": 4},
    {"name": "power_of_choice", "count": 3, "num_candidates": 9, "where": {"software": {"min": "0.1"}}},
    {"name": "power_of_choice", "fraction": 0.5, "num_candidates": 9, "where": {"idle": None}},
    {"name": "slow_aware", "slow_factor": 3, "slow_every": 10},
    {"name": "own", "selector": "Mine", "settings": {"count": 3}, "where": {"x": {"min": 1, "max": 2.5}}},
]


@pytest.mark.parametrize("fields", EACH, ids=str)
def test_settings_come_back_from_msgpack_and_json_as_they_were(fields: dict[str, Any]) -> None:
    spec = JobSpec.model_validate({"selector": fields})
    unpacked = msgpack.unpackb(msgpack.packb(spec.model_dump()), use_list=False)
    assert JobSpec.model_validate(unpacked) == JobSpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.model_dump()["selector"].items() >= fields.items()


def test_a_job_file_says_it_in_toml(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(
        """
        [selector]
        name = "power_of_choice"
        count = 5
        num_candidates = 20
        where = { region = "eu", gpu = true, num_examples = { min = 100 } }
        """
    )
    where: dict[str, AnyCondition] = {"region": "eu", "gpu": True, "num_examples": Range(min=100)}
    assert read_job(path).spec.selector == SelectPowerOfChoice(count=5, num_candidates=20, where=where)


@pytest.mark.parametrize(
    ("selector", "words"),
    [
        ({"name": "rotation"}, "selector: give either 'fraction' or 'count'"),
        ({"name": "slow_aware", "count": 1, "fraction": 0.5}, "selector: give either 'fraction' or 'count'"),
        (
            {"name": "slow_aware", "slow_factor": 1.0},
            "selector.slow_factor = 1.0 is not allowed",
        ),
        (
            {"name": "slow_aware", "slow_every": 1},
            "selector.slow_every = 1 is not allowed",
        ),
        ({"name": "power_of_choice", "count": 3}, "selector.num_candidates is missing"),
        (
            {"name": "power_of_choice", "count": 3, "num_candidates": 2},
            "selector: 'num_candidates' = 2 is below 'count' = 3",
        ),
        ({"name": "all", "exclude_after": 0}, "selector.exclude_after = 0 is not allowed"),
        ({"name": "all", "exclude_rounds": 3}, "'exclude_rounds' = 3 does nothing without 'exclude_after'"),
        ({"name": "all", "where": {"gpu": []}}, "selector.where.gpu: an empty list matches no learner"),
        ({"name": "all", "where": "eu"}, "selector.where = 'eu' is not allowed: it must be a table"),
        ({"name": "all", "count": 3}, "unknown field 'selector.count': allowed are exclude_after, "),
    ],
    ids=str,
)
def test_a_wrong_setting_is_told_by_its_name_and_value(selector: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError) as caught:
        make_spec({"selector": selector}, "job.toml")
    assert words in str(caught.value)


ASYNCHRONOUS = {
    "protocol": {"name": "asynchronous"},
    "rule": {"name": "fedasync"},
    "termination": {"updates": 9},
}
KRUM = {"name": "krum", "max_attackers": 2}
"""It needs 7 updates."""


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (
            {"selector": {"name": "power_of_choice", "count": 1, "num_candidates": 1}, "evaluate": False},
            "the selector 'power_of_choice' needs 'evaluate' to be true",
        ),
        (
            {**ASYNCHRONOUS, "selector": {"name": "rotation", "count": 1}},
            "'selector.name' = 'rotation' chooses the cohort of a round, and the protocol 'asynchronous'",
        ),
        (
            {**ASYNCHRONOUS, "selector": {"name": "all", "exclude_after": 3}},
            "'selector.exclude_after' = 3 leaves learners out for some rounds",
        ),
        (
            {"rule": KRUM, "protocol": {"min_learners": 9}, "selector": {"name": "rotation", "count": 6}},
            "'selector.count' = 6 is too small: a round could end with too few updates (6)",
        ),
        (
            {
                "rule": KRUM,
                "protocol": {"min_learners": 12},
                "selector": {"name": "power_of_choice", "fraction": 0.5, "num_candidates": 99},
            },
            "'selector.fraction' = 0.5 is too small: a round could end with too few updates (6)",
        ),
        (
            {"rule": KRUM, "protocol": {"min_learners": 12}, "selector": {"name": "slow_aware"}},
            "'protocol.min_learners' = 12 is too small: a round could end with too few updates (6)",
        ),
        (
            {
                "rule": KRUM,
                "protocol": {"min_learners": 13, "quorum": 0.8},
                "selector": {"name": "slow_aware"},
            },
            "'protocol.quorum' = 0.8 is too small: a round could end with too few updates (6)",
        ),
        (
            {"rule": KRUM, "protocol": {"min_learners": 99}, "selector": {"name": "all", "exclude_after": 3}},
            "f = 2 needs 7 updates (2 f + 3), so give 'protocol.quorum' as a count of at least so many",
        ),
        (
            {"rule": KRUM, "protocol": {"min_learners": 99}, "selector": {"name": "own", "selector": "Mine"}},
            "'selector.name' = 'own' may choose very few learners: the rule 'krum'",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_settings_that_contradict_each_other_are_refused(job: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError) as caught:
        make_spec(job, "job.toml")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "job",
    [
        {**ASYNCHRONOUS, "selector": {"name": "all", "where": {"gpu": True}}},
        {"rule": KRUM, "protocol": {"min_learners": 13}, "selector": {"name": "slow_aware"}},
        {"rule": KRUM, "protocol": {"quorum": 7}, "selector": {"name": "all", "exclude_after": 3}},
        {"rule": KRUM, "protocol": {"quorum": 7}, "selector": {"name": "slow_aware"}},
        {"rule": KRUM, "protocol": {"quorum": 7}, "selector": {"name": "own", "selector": "Mine"}},
        {"rule": KRUM, "protocol": {"min_learners": 7}, "selector": {"name": "rotation", "count": 7}},
    ],
    ids=str,
)
def test_settings_that_leave_a_round_enough_are_let_in(job: dict[str, Any]) -> None:
    make_spec(job, "job.toml")


@given(
    st.lists(st.one_of(st.just(0.0), st.floats(0.01, 1e6)), min_size=1, max_size=30),
    st.floats(1.001, 10),
    st.integers(0, 9),
)
def test_a_cohort_is_never_smaller_than_robust_rules_are_told(
    times: list[float], slow_factor: float, number: int
) -> None:
    settings = SelectSlowAware(slow_factor=slow_factor)
    history = {f"l{index}": Record(task_s=task_s) for index, task_s in enumerate(times)}
    members = [Member(learner=learner) for learner in sorted(history)]
    chosen = make_selector(settings).select(members, number, history)
    assert len(chosen) >= settings.smallest_cohort(len(members))
