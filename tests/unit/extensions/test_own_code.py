"""What a user is told of a rule or selector that does not do what its interface says."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from broker_fl import JobSpec, Model
from broker_fl.apps import load_module
from broker_fl.errors import AggregationError, AppError, UpdateRefused
from broker_fl.extensions import OwnClasses, try_own_code
from broker_fl.interfaces import Contribution, Given, Member

RULE = """
from broker_fl.aggregation.sums import WeightedSum
from broker_fl.errors import AggregationError, UpdateRefused
from broker_fl.interfaces import Combined
from broker_fl.model import Model
import numpy as np

class Mine:
    def __init__(self, most=100):
        self.most = most
    def begin(self, given):
        {begin}
        return Round(given, self.most)

class Round:
    def __init__(self, given, most):
        self.given, self.most, self.sum = given, most, WeightedSum(given.spec)
    def fold(self, update):
        {fold}
        weight = float(min(update.num_examples, self.most))
        self.sum.add(update.model, weight)
        return weight
    def result(self):
        {result}
        return Combined(model=self.sum.mean())
"""
SELECTOR = """
class Mine:
    def select(self, members, round, history):
        {select}
        return [member.learner for member in members]
class Other:
    def select(self, members, round, history): ...
"""
MODEL = Model.of(
    {"w": np.ones((2, 3), "f4"), "h": np.full(4, 60000, "f2"), "n": np.array(3), "on": np.array([True])}
)
HERE = [Member(learner=name, attributes={"region": region}) for name, region in (("a", "eu"), ("b", "us"))]


def own(folder: Path, source: str, **parts: str) -> OwnClasses:
    file = folder / "my_rules.py"
    file.write_text(dedent(source.format(**({"begin": "", "fold": "", "result": "", "select": ""} | parts))))
    return OwnClasses.of_module(*load_module(str(file)))


def refusal(classes: OwnClasses, members: list[Member] | None = None, **settings: Any) -> str:
    with pytest.raises(AppError) as caught:
        try_own_code(JobSpec.model_validate(settings), MODEL, HERE if members is None else members, classes)
    return str(caught.value)


RULE_OF = {"name": "own", "rule": "Mine"}
SELECTOR_OF = {"name": "own", "selector": "Mine"}

# ---------------------------------------------------------------- rules


def test_a_rule_that_does_what_it_should_passes_its_trial(tmp_path: Path) -> None:
    rule = RULE_OF | {"settings": {"most": 40}}
    try_own_code(JobSpec.model_validate({"rule": rule}), MODEL, [], own(tmp_path, RULE))


@pytest.mark.parametrize(
    ("part", "line", "told"),
    [
        ({"begin": "return None"}, 11, "Mine.begin() returned a NoneType without fold()"),
        ({"fold": "1 / 0"}, 19, "Round.fold() raised ZeroDivisionError: division by zero, at: 1 / 0"),
        ({"fold": "return None"}, 18, "Round.fold() returned None"),
        ({"fold": "return 0"}, 18, "Round.fold() returned 0"),
        ({"fold": "return float('inf')"}, 18, "Round.fold() returned inf"),
        ({"fold": "raise UpdateRefused('I like none')"}, None, "I like none"),
        ({"fold": "self.given.model()['w'][...] = 0"}, 19, "read-only"),
        ({"result": "return self.sum.mean()"}, 23, "Round.result() returned a Model; it returns a Combined"),
        ({"result": "return Combined(model={})"}, 23, "returned a model that is a dict"),
        ({"result": "return Combined(model=Model.of({'w': np.ones(3)}))"}, 23, "tensor 'h' is missing"),
        ({"result": "return Combined(model=self.sum.mean(), memory=3)"}, 23, "a memory that is a int"),
        ({"result": "return Combined(model=self.sum.mean(), updates=[1])"}, 23, "updates that are to be"),
        (
            {"result": "m = self.sum.mean(); m['h'][0] = np.nan; return Combined(model=m)"},
            23,
            "values in tensor 'h' that are NaN or infinite",
        ),
        ({"result": "raise AggregationError('too few for me')"}, None, "too few for me"),
        (
            {"begin": "if given.memory: raise KeyError('velocity')",
             "result": "return Combined(model=self.sum.mean(), memory=Model.of({'v': np.ones(1)}))"},
            12,
            "Mine.begin() raised KeyError: 'velocity'",
        ),
        ({"begin": "exit()"}, 12, "Mine.begin() ended the program"),
    ],
)  # fmt: skip
def test_what_a_rule_did_wrong_is_told_with_the_users_line(
    tmp_path: Path, part: dict[str, str], line: int | None, told: str
) -> None:
    said = refusal(own(tmp_path, RULE, **part), rule=RULE_OF)
    assert "tried with 2 made-up updates" in said
    assert told in said
    assert line is None or f"my_rules.py:{line}: " in said


def test_a_rule_that_needs_many_updates_is_tried_with_as_many_as_a_round_has_at_least(tmp_path: Path) -> None:
    needs_four = own(
        tmp_path,
        RULE,
        fold="self.count = getattr(self, 'count', 0) + 1",
        result="if self.count < 4: raise AggregationError('fewer than four')",
    )
    for settings in ({"min_learners": 4}, {"quorum": 4}):
        try_own_code(JobSpec.model_validate({"rule": RULE_OF, "protocol": settings}), MODEL, [], needs_four)
    too_few = {"min_learners": 4, "quorum": 0.75}
    assert "3 made-up updates: fewer than four" in refusal(needs_four, rule=RULE_OF, protocol=too_few)


def test_a_rule_may_ask_for_metrics_and_for_the_version_that_was_given(tmp_path: Path) -> None:
    asks = own(
        tmp_path,
        RULE,
        fold="assert update.evaluation['anything'] > 0 and update.metrics.get('loss') and update.num_steps",
        result="assert (self.given.model()['w'] == 1).all()",
    )
    try_own_code(JobSpec.model_validate({"rule": RULE_OF}), MODEL, [], asks)


def test_settings_that_the_class_does_not_take_are_refused_with_what_it_takes(tmp_path: Path) -> None:
    said = refusal(own(tmp_path, RULE), rule=RULE_OF | {"settings": {"least": 1}})
    assert "my_rules.py:8: Mine(most=100) cannot be made" in said
    assert "'least'" in said


def test_a_class_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    classes = own(tmp_path, RULE)
    for not_a_rule in ("Mime", "Round", "Model", "np", "WeightedSum"):
        said = refusal(classes, rule={"name": "own", "rule": not_a_rule})
        assert said.endswith(f"has no rule '{not_a_rule}' (a class with the method begin); it has Mine")
        assert "tried" not in said
    assert "has no selector 'Mine'" in refusal(classes, selector=SELECTOR_OF)
    assert "started without an app file" in refusal(OwnClasses(), rule=RULE_OF)


def test_nothing_is_called_that_was_not_offered_as_a_rule(tmp_path: Path) -> None:
    """A job comes from afar; what else the file can do is not for it."""
    classes = own(tmp_path, "def begin(path):\n    open(path, 'w')\nclass Begin:\n    begin = 3\n")
    victim = str(tmp_path / "written")
    for name in ("begin", "Begin"):
        refusal(classes, rule={"name": "own", "rule": name, "settings": {"path": victim}})
    assert not Path(victim).exists()


def test_in_a_round_the_rule_sees_only_updates_that_are_in_order(tmp_path: Path) -> None:
    rule = own(tmp_path, RULE).rule("Mine", {})
    accumulator = rule.begin(Given(spec=MODEL.spec, model=lambda: MODEL))
    broken = MODEL.copy()
    broken["w"][0, 0] = np.inf
    for model, num_examples in ((broken, 1), (MODEL, 0), (Model.of({"w": np.ones(1)}), 1)):
        with pytest.raises(UpdateRefused):
            accumulator.fold(Contribution(learner="a", model=model, num_examples=num_examples))
    assert accumulator.fold(Contribution(learner="b", model=MODEL, num_examples=7)) == 7
    assert accumulator.total_weight == 7
    np.testing.assert_array_equal(accumulator.result().model.buffer, MODEL.buffer)


def test_in_a_round_values_that_are_not_finite_fail_the_commit_only(tmp_path: Path) -> None:
    rule = own(
        tmp_path,
        RULE,
        result="self.given.model; m = self.sum.mean(); m['w'][0] = np.inf; return Combined(model=m)",
    )
    accumulator = rule.rule("Mine", {}).begin(Given(spec=MODEL.spec, model=lambda: MODEL))
    accumulator.fold(Contribution(learner="b", model=MODEL, num_examples=7))
    with pytest.raises(AggregationError, match="'w'"):
        accumulator.result()


def test_classes_of_a_program_can_be_given_as_they_are() -> None:
    class Chosen:
        def select(self, members: Any, round: int, history: Any) -> list[str]:
            return [members[0].learner]

    classes = OwnClasses.of([Chosen])
    assert classes.selector("Chosen", {}).select(HERE, 0, {}) == ["a"]
    with pytest.raises(AppError, match="neither a rule"):
        OwnClasses.of([Path])
    with pytest.raises(AppError, match="one name"):
        OwnClasses.of([Chosen, Chosen])


# ---------------------------------------------------------------- selectors


def test_a_selector_passes_its_trial_also_while_nobody_is_there(tmp_path: Path) -> None:
    by_region = own(
        tmp_path, SELECTOR, select="return [m.learner for m in members if m.attributes['region'] == 'eu']"
    )
    for members in (HERE, []):
        try_own_code(JobSpec.model_validate({"selector": SELECTOR_OF}), MODEL, members, by_region)
    assert by_region.selector("Mine", {}).select(HERE, 0, {}) == ["a"]


@pytest.mark.parametrize(
    ("select", "told"),
    [
        ("return ['a', 'zoe']", "chose 'zoe', which is not the id of a member"),
        ("return ['a', 'a']", "chose a learner twice"),
        ("return members[0].learner", "returned a str; it returns a list of ids"),
        ("return [members[0]]", "chose Member(learner='a'"),
        (
            "return members[9]",
            "Mine.select() raised IndexError: list index out of range, at: return members[9]",
        ),
        (
            "self.turn = not getattr(self, 'turn', False); return ['a' if self.turn else 'b']",
            "gives other ids",
        ),
        ("return list(history)[:1] + [history['b'].last_rounds]", "KeyError: 'b'"),
        ("return [m.attributes['gpu'] for m in members]", "KeyError: 'gpu'"),
    ],
)
def test_what_a_selector_did_wrong_is_told(tmp_path: Path, select: str, told: str) -> None:
    classes = own(tmp_path, SELECTOR, select=select)
    assert told in refusal(classes, selector=SELECTOR_OF)


def test_in_a_round_a_selector_must_choose_somebody(tmp_path: Path) -> None:
    nobody = own(tmp_path, SELECTOR, select="return []")
    try_own_code(JobSpec.model_validate({"selector": SELECTOR_OF}), MODEL, HERE, nobody)
    with pytest.raises(
        AppError, match=r"my_rules.py:3: Mine.select\(\) chose nobody of 2 learners for round 3"
    ):
        nobody.selector("Mine", {}).select(HERE, 3, {})


def test_a_trial_that_does_not_end_is_given_up_and_its_place_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_fl.extensions.trial.PATIENCE_S", 1.5)
    rule = RULE.replace("import numpy as np", "import time")
    told = refusal(own(tmp_path, rule, fold="for _ in range(900): time.sleep(0.01)"), rule=RULE_OF)
    assert told.startswith("the rule 'Mine' did not end within 1.5 s when it was tried; it is at ")
    assert told.endswith("my_rules.py:19, in fold")
    selector = "for _ in range(900): __import__('time').sleep(0.01)"
    assert "the selector 'Mine' did not end" in refusal(
        own(tmp_path, SELECTOR, select=selector), selector=SELECTOR_OF
    )
