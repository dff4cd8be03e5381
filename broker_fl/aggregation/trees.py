"""Boosted trees as XGBoost writes them in JSON: read, checked, and put side by side, without XGBoost.

Format: https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html. Numbers stay what they are:
XGBoost writes a float32 with at most 9 digits, which survive being read and written as float64.

What a learner sent is checked before others load it, since XGBoost walks trees without looking where to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from broker_fl.errors import UpdateRefused
from broker_fl.model import Array

INTEGERS = ("left_children", "right_children", "parents", "split_indices", "split_type", "default_left")
REALS = ("split_conditions", "base_weights", "loss_changes", "sum_hessian")
NO_CHILD = -1
ROOTS_PARENT = 2**31 - 1


class Trees:
    """An ensemble: ``margin(x) = base score + Σ_k f_k(x)`` (Chen & Guestrin 2016, equation 1)."""

    def __init__(self, data: bytes) -> None:
        """Read JSON.

        Raises:
            UpdateRefused: it is no ensemble of the booster ``gbtree``, or a tree of it is not sound.
        """
        try:
            self._document = json.loads(data, parse_constant=_no_number)
            learner = self._document["learner"]
            booster, self._shape = learner["gradient_booster"], dict(learner["learner_model_param"])
            self.objective = str(learner["objective"]["name"])
            if booster["name"] != "gbtree":
                raise UpdateRefused(f"the booster is {booster['name']!r}; only 'gbtree' can be merged")
            self._model = booster["model"]
            self._check()
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            reason = f"{type(error).__name__}: {str(error)[:100]}"
            raise UpdateRefused(f"the bytes are no boosted trees in XGBoost's JSON ({reason})") from error

    def __len__(self) -> int:
        return len(self._model["trees"])

    @property
    def num_features(self) -> int:
        """Of the inputs."""
        return int(self._shape["num_feature"])

    @property
    def num_groups(self) -> int:
        """Margins of an example: the classes, or targets, of each of which a tree belongs to one."""
        return max(1, int(self._shape["num_class"]), int(self._shape["num_target"]))

    @property
    def base_score(self) -> tuple[float, ...]:
        """Of each group, or the one that all have."""
        scores = tuple(map(float, str(self._shape["base_score"]).strip("[]").split(",")))
        return scores if len(set(scores)) > 1 else scores[:1]

    def differences(self, other: Trees) -> list[str]:
        """In what the two cannot be summed, in words."""
        kinds = ("objective", "num_features", "num_groups", "base_score")
        pairs = [(kind, getattr(self, kind), getattr(other, kind)) for kind in kinds]
        return [f"{kind} {b} instead of {a}" for kind, a, b in pairs if a != b]

    def append(self, other: Trees) -> None:
        """Put the trees of ``other`` after these, as rounds of boosting of their own."""
        mine, before = self._model, len(self)
        for tree in other._model["trees"]:
            mine["trees"].append({**tree, "id": len(mine["trees"])})
        mine["tree_info"].extend(other._model["tree_info"])
        mine["iteration_indptr"].extend(before + end for end in other._model["iteration_indptr"][1:])
        mine["gbtree_model_param"]["num_trees"] = str(len(self))

    def to_json(self) -> bytes:
        """As XGBoost reads it."""
        return json.dumps(self._document, separators=(",", ":"), allow_nan=False).encode()

    def _check(self) -> None:
        trees, groups = self._model["trees"], self._model["tree_info"]
        ends = _whole_numbers(self._model["iteration_indptr"])
        if ends[0] != 0 or ends[-1] != len(trees) or (np.diff(ends) < 0).any():
            raise ValueError("iteration_indptr does not cover the trees")
        if len(groups) != len(trees) or not _within(_whole_numbers(groups), 0, self.num_groups):
            raise ValueError("tree_info does not name a group for each tree")
        if int(self._model["gbtree_model_param"]["num_trees"]) != len(trees):
            raise ValueError("num_trees is not the number of trees")
        for tree in trees:
            check_tree(tree, self.num_features)


def check_tree(tree: dict[str, Any], num_features: int) -> None:
    """Whether walks from the root end at leaves, and all numbers are such.

    Raises:
        ValueError: they do not, or are not.
    """
    shape = tree["tree_param"]
    num_nodes = int(shape["num_nodes"])
    if int(shape["num_feature"]) != num_features or int(shape["size_leaf_vector"]) > 1:
        raise ValueError("a tree is for other inputs, or has vectors for leaves")
    if any(tree[name] for name in ("categories", "categories_nodes")):
        raise ValueError("a tree splits by category: encode categories as numbers, alike at all learners")
    integers = {name: _whole_numbers(tree[name]) for name in INTEGERS}
    reals = [_real_numbers(tree[name]) for name in REALS]
    if num_nodes < 1 or any(len(values) != num_nodes for values in (*integers.values(), *reals)):
        raise ValueError("a tree has not as many values as nodes")
    if not _within(integers["split_indices"], 0, num_features) or integers["split_type"].any():
        raise ValueError("a tree splits by a feature that there is not")
    _check_walks(integers["left_children"], integers["right_children"], integers["parents"])


def _check_walks(left: Array, right: Array, parents: Array) -> None:
    """Each node that is reached is reached once, from its parent; nodes that pruning cut off are not."""
    open_nodes, reached = [0], {0}
    if parents[0] != ROOTS_PARENT:
        raise ValueError("a tree's first node is not its root")
    while open_nodes:
        node = open_nodes.pop()
        children = [int(left[node]), int(right[node])]
        if children == [NO_CHILD, NO_CHILD]:
            continue
        for child in children:
            if not 0 < child < len(left) or child in reached or parents[child] != node:
                raise ValueError(f"node {node} of a tree has a child {child} that is not its own")
            reached.add(child)
            open_nodes.append(child)


def _whole_numbers(values: Sequence[Any]) -> Array:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError("a list of whole numbers is none")
    return np.array(values, np.int64)


def _real_numbers(values: Sequence[Any]) -> Array:
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError("a list of numbers is none")
    with np.errstate(over="ignore"):
        found = np.array(values, np.float64).astype(np.float32)
    if not np.isfinite(found).all():
        raise ValueError("a number is infinite")
    return found


def _within(values: Array, least: int, end: int) -> bool:
    return not len(values) or bool(values.min() >= least and values.max() < end)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"a number is {name}")
