from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_fl import opaque
from broker_fl.errors import AggregationError, UpdateRefused
from broker_fl.frameworks.xgboost import empty_model, to_booster
from broker_fl.interfaces import Combined, Contribution, Given
from broker_fl.model import Array, Model
from tests.unit.aggregation.cohorts import rule_of

NUM_FEATURES = 5
LEARNERS = ("a", "b", "c")
BINARY = {"objective": "binary:logistic", "base_score": 0.3, "max_depth": 3}
CLASSES = {
    "objective": "multi:softprob",
    "num_class": 3,
    "max_depth": 2,
    "num_parallel_tree": 2,
    "subsample": 0.7,
}


def examples(seed: int, settings: Mapping[str, Any]) -> tuple[Array, Array]:
    inputs = np.random.default_rng(seed).normal(size=(80, NUM_FEATURES))
    inputs[inputs > 1.5] = np.nan  # trees send missing values somewhere, too
    kinds = np.nan_to_num(inputs[:, :3]).argmax(axis=1)
    return inputs, kinds if "num_class" in settings else kinds > 0


def start(settings: Mapping[str, Any] = BINARY, capacity_bytes: int = 200_000) -> Model:
    return Model.of(empty_model(settings, NUM_FEATURES, capacity_bytes=capacity_bytes))


def new_trees(model: Model, settings: Mapping[str, Any], seed: int, num: int = 2) -> Model:
    """What a learner with data of its own sends."""
    booster = to_booster(model, {**settings, "seed": seed, "nthread": 1})
    before = booster.num_boosted_rounds()
    for number in range(before, before + num):
        booster.update(xgboost.DMatrix(*examples(seed, settings)), number)
    update = model.copy()
    opaque.write(bytes(booster[before:].save_raw("json")), update["booster"])
    return update


def merge(base: Model, updates: Mapping[str, Model]) -> Combined:
    """The rule's result, of updates that arrive in this order."""
    accumulator = rule_of("tree_bagging").begin(Given(spec=base.spec, model=lambda: base))
    for learner, model in updates.items():
        weight = accumulator.fold(Contribution(learner=learner, model=model, num_examples=7))
        assert weight == 1
    assert accumulator.total_weight == len(updates)
    combined: Combined = accumulator.result()
    return combined


@cache
def rounds(classes: bool) -> tuple[Model, list[dict[str, Model]], list[Model]]:
    """The first model, and of three rounds the updates and the results."""
    settings = CLASSES if classes else BINARY
    models, updates = [start(settings)], list[dict[str, Model]]()
    for round in range(3):
        updates.append(
            {k: new_trees(models[-1], settings, 10 * round + i, i + 1) for i, k in enumerate(LEARNERS)}
        )
        models.append(merge(models[-1], updates[-1]).model)
    return models[0], updates, models[1:]


def margins_by_hand(documents: list[dict[str, Any]], inputs: Array, num_groups: int) -> Array:
    """``Σ_k f_k(x)`` in float64, by walking each tree of the JSON."""
    found = np.zeros((len(inputs), num_groups))
    for document in documents:
        model = document["learner"]["gradient_booster"]["model"]
        for tree, group in zip(model["trees"], model["tree_info"], strict=True):
            found[:, group] += [leaf(tree, row) for row in inputs.astype(np.float32)]
    return found


def leaf(tree: dict[str, Any], row: Array) -> float:
    node = 0
    while tree["left_children"][node] >= 0:
        value = row[tree["split_indices"][node]]
        below = value < np.float32(tree["split_conditions"][node])
        left = tree["default_left"][node] if np.isnan(value) else below
        node = tree["left_children" if left else "right_children"][node]
    return float(tree["split_conditions"][node])


@pytest.mark.parametrize("classes", [False, True], ids=["binary", "multi"])
def test_the_margin_is_the_base_score_and_the_sum_of_all_trees_of_all_learners(classes: bool) -> None:
    _, updates, models = rounds(classes)
    inputs, _ = examples(99, CLASSES if classes else BINARY)
    sent = [json.loads(opaque.read(one[k]["booster"])) for one in updates for k in LEARNERS]
    booster = to_booster(models[-1])
    found = booster.predict(xgboost.DMatrix(inputs), output_margin=True)
    base = 0.5 if classes else np.log(0.3 / 0.7)
    expected = base + margins_by_hand(sent, inputs, 3 if classes else 1)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(expected) > 0.5
    assert booster.num_boosted_rounds() == 3 * (1 + 2 + 3)


@pytest.mark.parametrize("classes", [False, True], ids=["binary", "multi"])
def test_every_tree_is_in_the_model_as_it_was_sent_in_the_order_of_the_learners(classes: bool) -> None:
    _, updates, models = rounds(classes)
    dumped = [tree for one in updates for k in LEARNERS for tree in dump(to_booster(one[k]))]
    assert dump(to_booster(models[-1])) == dumped


def dump(booster: xgboost.Booster) -> list[str]:
    return booster.get_dump(with_stats=True, dump_format="json")


def test_xgboost_reads_and_writes_the_model_without_changing_a_digit() -> None:
    for classes in (False, True):
        model = rounds(classes)[2][-1]
        ours, theirs = (
            json.loads(opaque.read(model["booster"])),
            json.loads(to_booster(model).save_raw("json")),
        )
        assert ours["learner"]["gradient_booster"] == theirs["learner"]["gradient_booster"]


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(LEARNERS), dropped=st.integers(0, 2), classes=st.booleans())
def test_the_order_of_arrival_changes_no_byte(order: list[str], dropped: int, classes: bool) -> None:
    base, updates, models = rounds(classes)
    kept = order[dropped:]
    arrived = {learner: updates[0][learner] for learner in kept}
    found = merge(base, arrived).model
    assert (
        found.digest == merge(base, {learner: updates[0][learner] for learner in sorted(kept)}).model.digest
    )
    assert (found.digest == models[0].digest) == (not dropped)


def test_a_model_that_is_full_says_how_large_it_would_have_to_be() -> None:
    base = start(capacity_bytes=4_000)
    updates = {learner: new_trees(base, BINARY, seed) for seed, learner in enumerate(LEARNERS)}
    with pytest.raises(
        AggregationError, match=r"is full with 6 trees: \d+ bytes do not fit .* room for 4000; st"
    ):
        merge(base, updates)
    with pytest.raises(AggregationError, match="no update was folded"):
        merge(base, {})


Document = dict[str, Any]
BOOSTER, PARAM = ("learner", "gradient_booster"), ("learner", "learner_model_param")
MODEL = (*BOOSTER, "model")
TREE = (*MODEL, "trees", 1)


def put(*path: Any) -> Callable[[Document], None]:
    """A change: the last is the value, the one before it the key."""
    *way, key, value = path

    def change(document: Document) -> None:
        place: Any = document
        for part in way:
            place = place[part]
        place[key] = value

    return change


WRONG: dict[str, tuple[Callable[[Document], None], str]] = {
    "child beyond": (put(*TREE, "left_children", 0, 99), "node 0 of a tree has a child 99"),
    "child is root": (put(*TREE, "left_children", 0, 0), "node 0 of a tree has a child 0"),
    "one child twice": (put(*TREE, "left_children", 0, 2), "node 0 of a tree has a child 2"),
    "one child only": (put(*TREE, "left_children", 0, -1), "node 0 of a tree has a child -1"),
    "foreign child": (put(*TREE, "parents", 1, 2), "node 0 of a tree has a child 1"),
    "no root": (put(*TREE, "parents", 0, 1), "first node is not its root"),
    "feature beyond": (put(*TREE, "split_indices", 0, NUM_FEATURES), "splits by a feature that there is not"),
    "feature below": (put(*TREE, "split_indices", 0, -1), "splits by a feature that there is not"),
    "categorical": (put(*TREE, "split_type", 0, 1), "splits by a feature that there is not"),
    "categories": (put(*TREE, "categories", [1]), "splits by category: encode"),
    "NaN": (put(*TREE, "base_weights", 0, float("nan")), "a number is NaN"),
    "infinite": (put(*TREE, "split_conditions", 0, -1e39), "a number is infinite"),
    "text": (put(*TREE, "split_conditions", 0, "1"), "a list of numbers is none"),
    "fraction": (put(*TREE, "left_children", 0, 1.5), "a list of whole numbers is none"),
    "huge": (put(*TREE, "left_children", 0, 1 << 80), "OverflowError"),
    "short": (put(*TREE, "sum_hessian", [1.0]), "not as many values as nodes"),
    "nodes": (put(*TREE, "tree_param", "num_nodes", "999"), "not as many values as nodes"),
    "no nodes": (put(*TREE, "tree_param", "num_nodes", "0"), "not as many values as nodes"),
    "other inputs": (put(*TREE, "tree_param", "num_feature", "7"), "a tree is for other inputs"),
    "vector leaves": (put(*TREE, "tree_param", "size_leaf_vector", "3"), "has vectors for leaves"),
    "no tree": (put(*TREE, None), "TypeError"),
    "group": (put(*MODEL, "tree_info", 1, 1), "tree_info does not name a group"),
    "ends": (put(*MODEL, "iteration_indptr", [0, 1]), "iteration_indptr does not cover"),
    "no ends": (put(*MODEL, "iteration_indptr", []), "IndexError"),
    "count": (put(*MODEL, "gbtree_model_param", "num_trees", "3"), "num_trees is not the number"),
    "booster": (put(*BOOSTER, "name", "dart"), "the booster is 'dart'; only 'gbtree' can be merged"),
    "base score": (
        put(*PARAM, "base_score", "[4E-1]"),
        r"another model: base_score \(0\.4,\) instead of \(0\.3,\)",
    ),
    "targets": (put(*PARAM, "num_target", "2"), "another model: num_groups 2 instead of 1"),
    "objective": (put("learner", "objective", "name", "reg:squarederror"), "another model: objective reg:sq"),
    "nothing": (put("learner", None), "TypeError"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_trees_that_are_not_sound_are_refused_before_anybody_loads_them(
    change: Callable[[Document], None], message: str
) -> None:
    base = start()
    update = new_trees(base, BINARY, 0)
    document = json.loads(opaque.read(update["booster"]))
    change(document)
    opaque.write(json.dumps(document).encode(), update["booster"])
    with pytest.raises(UpdateRefused, match=message):
        merge(base, {"a": update})


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b"[]", b"{}", b"1" * 5000, b"[" * 100_000, b'{"learner": {"x": Infinity}}'],
)
def test_bytes_that_are_no_trees_are_refused(data: bytes) -> None:
    base, update = start(), start()
    opaque.write(data, update["booster"])
    with pytest.raises(UpdateRefused, match="the bytes are no boosted trees in XGBoost's JSON"):
        merge(base, {"a": update})


def test_an_update_without_trees_or_of_another_shape_is_refused_and_the_others_count() -> None:
    base = start()
    good = new_trees(base, BINARY, 0)
    accumulator = rule_of("tree_bagging").begin(Given(spec=base.spec, model=lambda: base))
    for model, num_examples, message in (
        (base, 5, "the update has no tree"),
        (start(capacity_bytes=9_000), 5, "does not look like the model"),
        (good, 0, "trained on no example"),
    ):
        with pytest.raises(UpdateRefused, match=message):
            accumulator.fold(Contribution(learner="b", model=model, num_examples=num_examples))
    accumulator.fold(Contribution(learner="a", model=good, num_examples=5))
    assert accumulator.total_weight == 1
    assert accumulator.result().model.digest == merge(base, {"a": good}).model.digest


def test_a_model_that_is_no_trees_is_refused_with_the_reason() -> None:
    weights = Model.of({"w": np.zeros(3), "b": np.zeros(1)})
    with pytest.raises(
        UpdateRefused, match="merges trees, and the model has none: it has 2 tensors instead of one"
    ):
        merge(weights, {"a": weights})
