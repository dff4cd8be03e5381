"""Rounds for the tests of robust rules: random updates, some of them an attacker's, and plain references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from broker_fl.aggregation import make_rule
from broker_fl.errors import UpdateRefused
from broker_fl.interfaces import Accumulator, Contribution, Given
from broker_fl.model import DTYPES, FLOATS, Array, Model
from broker_fl.wire.job import JobSpec

EPSILON = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-6, "float64": 1e-12}
SHAPES = st.sampled_from([(), (0,), (1,), (7,), (3, 2), (5, 41)])
Tensors = list[tuple[str, tuple[int, ...]]]


class Round:
    """A given model, and the updates to it."""

    def __init__(self, tensors: Tensors, num_updates: int, num_attackers: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.given = random_model(tensors, rng, 1.0)
        self.updates = [
            Contribution(
                learner=f"l{index:02}",
                model=random_model(tensors, rng, 30.0 if index < num_attackers else 1.0),
                num_examples=int(rng.integers(1, 50)),
            )
            for index in range(num_updates)
        ]
        self.order = list(rng.permutation(num_updates))

    def begin(self, **rule: Any) -> Accumulator:
        """The round under a rule."""
        return make_rule(settings_of(**rule)).begin(Given(spec=self.given.spec, model=lambda: self.given))

    def combine(self, updates: Sequence[Contribution] | None = None, **rule: Any) -> Model:
        """What the rule makes of the updates, folded in a random order."""
        accumulator = self.begin(**rule)
        for update in [self.updates[i] for i in self.order] if updates is None else updates:
            accumulator.fold(update)
        return accumulator.result().model

    def flat(self, model: Model) -> Array:
        """The float tensors, one after the other, in float64."""
        floats = [model[t.name] for t in model.spec.tensors if t.dtype in FLOATS]
        return np.concatenate([np.zeros(0), *(array.astype(np.float64).reshape(-1) for array in floats)])

    def vectors(self) -> Array:
        """``flat`` of every update, in the order of their learners' ids."""
        return np.stack([self.flat(update.model) for update in self.updates])

    def values(self, name: str) -> Array:
        """One tensor of every update, in float64."""
        return np.stack([update.model[name].astype(np.float64) for update in self.updates])


def settings_of(**rule: Any) -> Any:
    """Settings as they come from a job that is large enough for any rule."""
    return JobSpec.model_validate({"rule": rule, "protocol": {"min_learners": 1000}}).rule


def random_model(tensors: Tensors, rng: np.random.Generator, spread: float) -> Model:
    """Floats are normal; whole numbers are of all signs that the type has."""

    def values(dtype: str, shape: tuple[int, ...]) -> Array:
        if dtype in FLOATS:
            return np.asarray(rng.normal(0, spread, shape)).astype(DTYPES[dtype])
        low = 0 if dtype in ("bool", "uint8") else -50
        return np.asarray(rng.integers(low, 2 if dtype == "bool" else 50, shape)).astype(DTYPES[dtype])

    return Model.of({f"t{i}": values(dtype, shape) for i, (dtype, shape) in enumerate(tensors)})


@st.composite
def rounds(draw: st.DrawFn, needed: Callable[[int], int]) -> tuple[Round, int]:
    """A round of at least ``needed(f)`` updates, ``f`` of them wild; and ``f``."""
    tensors = draw(st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), SHAPES), max_size=5))
    f = draw(st.integers(0, 3))
    num_updates = needed(f) + draw(st.integers(0, 4))
    return Round([("float64", (3,)), *tensors], num_updates, f, draw(st.integers(0, 2**32))), f


def check(found: Model, expected: Callable[[str], Array], largest: Callable[[str], Array]) -> None:
    """Hold a model against a float64 reference, tensor by tensor; whole numbers are the reference rounded."""
    for tensor in found.spec.tensors:
        exact, value = np.asarray(expected(tensor.name)), found[tensor.name]
        if tensor.dtype == "bool":
            clear = np.abs(exact - 0.5) > 1e-9
            assert (value == (exact > 0.5))[clear].all()
        elif tensor.dtype in FLOATS:
            slack = EPSILON[tensor.dtype] * np.abs(largest(tensor.name)).max(axis=0, initial=0) + 1e-7
            assert (np.abs(value.astype(np.float64) - exact) <= slack).all()
        else:
            assert (np.abs(value.astype(np.float64) - exact) <= 0.5 + 1e-6).all()


def check_refusals(attacked: Round, **rule: Any) -> None:
    """A refused update changes nothing: neither the weight nor the result."""
    undisturbed, disturbed = attacked.begin(**rule), attacked.begin(**rule)
    for update in attacked.updates:
        broken = update.model.copy()
        broken["t0"].reshape(-1)[-1] = np.nan
        other = Model.of({**update.model, "extra": np.zeros(1, np.float32)})
        for model, num_examples in ((update.model, 0), (broken, 1), (other, 1)):
            with pytest.raises(UpdateRefused):
                disturbed.fold(Contribution(learner="bad", model=model, num_examples=num_examples))
        assert undisturbed.fold(update) == disturbed.fold(update)
    assert undisturbed.total_weight == disturbed.total_weight
    assert undisturbed.result().model.digest == disturbed.result().model.digest
