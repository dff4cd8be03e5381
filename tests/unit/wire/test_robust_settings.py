"""Jobs with robust rules: those that could end a round with too few updates are refused when submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from broker_fl.errors import SettingError
from broker_fl.jobfile import make_spec, read_job
from broker_fl.wire.job import JobSpec
from broker_fl.wire.rules import Bulyan

KRUM = {"name": "krum", "max_attackers": 2}
"""It needs 7 updates."""


@pytest.mark.parametrize(
    ("protocol", "selector"),
    [
        ({"min_learners": 7}, {"name": "all"}),
        ({"quorum": 7}, {"name": "all"}),
        ({"min_learners": 7, "quorum": 7}, {"name": "random", "count": 7}),
        ({"min_learners": 14}, {"name": "random", "fraction": 0.5}),
        ({"min_learners": 13}, {"name": "random", "fraction": 0.5}),
        ({"min_learners": 9, "quorum": 0.7}, {"name": "all"}),
        ({"min_learners": 20, "quorum": 0.7}, {"name": "random", "count": 10}),
    ],
    ids=str,
)
def test_a_job_whose_every_round_has_enough_updates_is_a_job(
    protocol: dict[str, Any], selector: dict[str, Any]
) -> None:
    spec = JobSpec.model_validate({"rule": KRUM, "protocol": protocol, "selector": selector})
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("protocol", "selector", "field", "num_updates"),
    [
        ({}, {"name": "all"}, "'protocol.min_learners' = 1", 1),
        ({"min_learners": 6}, {"name": "all"}, "'protocol.min_learners' = 6", 6),
        ({"min_learners": 9, "quorum": 6}, {"name": "all"}, "'protocol.quorum' = 6", 6),
        ({"min_learners": 8, "quorum": 0.7}, {"name": "all"}, "'protocol.quorum' = 0.7", 6),
        ({"min_learners": 9}, {"name": "random", "count": 6}, "'selector.count' = 6", 6),
        ({"min_learners": 12}, {"name": "random", "fraction": 0.5}, "'selector.fraction' = 0.5", 6),
        (
            {"min_learners": 20, "quorum": 0.6},
            {"name": "random", "count": 10},
            "'protocol.quorum' = 0.6",
            6,
        ),
    ],
    ids=str,
)
def test_a_job_that_could_end_a_round_with_too_few_is_refused_with_field_value_and_reason(
    protocol: dict[str, Any], selector: dict[str, Any], field: str, num_updates: int
) -> None:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate({"rule": KRUM, "protocol": protocol, "selector": selector})
    text = str(caught.value)
    assert f"{field} is too small: a round could end with too few updates ({num_updates})" in text
    assert "the rule 'krum' with 'rule.max_attackers' f = 2 needs 7 (2 f + 3)" in text


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"name": "bulyan", "max_attackers": -1}, "rule.max_attackers = -1 is not allowed"),
        ({"name": "bulyan", "max_attackers": 0.2}, "rule.max_attackers = 0.2 is not allowed"),
        ({"name": "bulyan", "attackers": 1}, "unknown field 'rule.attackers'"),
        ({"name": "multi_krum", "num_selected": 0}, "rule.num_selected = 0 is not allowed"),
        ({"name": "geometric_median", "smoothing": 0.0}, "rule.smoothing = 0.0 is not allowed"),
        ({"name": "geometric_median", "tolerance": 1.0}, "rule.tolerance = 1.0 is not allowed"),
        ({"name": "geometric_median", "max_iterations": 0}, "rule.max_iterations = 0 is not allowed"),
        ({"name": "geometric_median", "weighting": "size"}, "rule.weighting = 'size' is not allowed"),
        ({"name": "norm_clipping"}, "rule.max_norm is missing"),
        ({"name": "norm_clipping", "max_norm": 0.0}, "rule.max_norm = 0.0 is not allowed"),
        ({"name": "mean"}, "rule.name = 'mean' is not allowed"),
        ({"name": "bulyan", "max_attackers": 3}, "needs 15 (4 f + 3)"),
        ({"name": "multi_krum", "num_selected": 8}, "needs 11 (2 f + 3, and f + num_selected + 2)"),
    ],
    ids=str,
)
def test_a_wrong_setting_of_a_rule_is_refused_by_its_name_and_value(rule: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError) as caught:
        make_spec({"rule": rule, "protocol": {"min_learners": 10}}, "job.toml")
    assert words in str(caught.value)


def test_a_job_file_names_a_rule(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text('[rule]\nname = "bulyan"\nmax_attackers = 3\n[protocol]\nmin_learners = 15\n')
    assert read_job(path).spec.rule == Bulyan(max_attackers=3)
    path.write_text('[rule]\nname = "bulyan"\nmax_attackers = 3\n[protocol]\nmin_learners = 14\n')
    with pytest.raises(SettingError, match=r"'protocol.min_learners' = 14 is too small"):
        read_job(path)
