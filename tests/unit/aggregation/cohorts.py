"""Random rounds for tests of rules, and what every rule must do with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pytest
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter

from broker_fl.aggregation import make_rule
from broker_fl.errors import UpdateRefused
from broker_fl.interfaces import Combined, Contribution, Given
from broker_fl.model import DTYPES, FLOATS, Array, Model
from broker_fl.wire.rules import AnyRule

_RULE: TypeAdapter[Any] = TypeAdapter(Annotated[AnyRule, Field(discriminator="name")])
Reals = dict[str, Array]
"""The float tensors of a model, in float64: what the plain references compute with."""
Cohorts = tuple[Model, list[list[Contribution]]]
"""A model, and for each round what learners delivered."""
TOLERANCE = {"float16": 4e-3, "bfloat16": 4e-2, "float32": 4e-5, "float64": 1e-10}


def rule_of(name: str, **settings: Any) -> Any:
    """The rule as a job makes it."""
    return make_rule(_RULE.validate_python({"name": name, **settings}))


def random_model(rng: np.random.Generator, kinds: Sequence[tuple[str, int]], scale: float = 1.0) -> Model:
    """Tensors of these element types and lengths."""
    arrays: dict[str, Array] = {}
    for index, (dtype, size) in enumerate(kinds):
        drawn: Array = rng.normal(size=size) * scale
        if dtype == "bool":
            drawn = drawn > 0
        elif dtype not in FLOATS:
            drawn = np.abs(np.rint(drawn * 20))
        arrays[f"t{index}"] = drawn.astype(DTYPES[dtype])
    return Model.of(arrays)


@st.composite
def cohorts(draw: st.DrawFn, rounds: int = 1) -> Cohorts:
    """A model, and for each of ``rounds`` what the learners that were not dropped delivered.

    Their models are near to one another, as after training; one learner may be far away.
    """
    kind = st.tuples(st.sampled_from(sorted(DTYPES)), st.sampled_from([0, 1, 5, 33_000]))
    kinds = [("float32", 3), *draw(st.lists(kind, max_size=3))]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    start = random_model(rng, kinds)
    return start, [
        [_contribution(draw, rng, kinds, k) for k in range(draw(st.integers(1, 4)))] for _ in range(rounds)
    ]


def _contribution(
    draw: st.DrawFn, rng: np.random.Generator, kinds: Sequence[tuple[str, int]], index: int
) -> Contribution:
    return Contribution(
        learner=f"l{index}",
        model=random_model(rng, kinds, draw(st.sampled_from([0.1, 1.0, 3.0]))),
        num_examples=draw(st.sampled_from([1, 7, 50, 100_000])),
        num_steps=draw(st.integers(1, 40)),
        evaluation={"loss": draw(st.sampled_from([0.0, 0.01, 0.7, 5.0]))},
    )


def reals(model: Mapping[str, Array]) -> Reals:
    """The float tensors in float64."""
    return {name: a.astype(np.float64) for name, a in model.items() if a.dtype.name in FLOATS}


def play(rule: Any, start: Model, rounds: list[list[Contribution]], chance: Any = None) -> list[Combined]:
    """Go through the rounds, in an order of arrival that ``chance`` decides."""
    combined, found = Combined(model=start), []
    for contributions in rounds:
        arrived = list(contributions)
        if chance is not None:
            chance.shuffle(arrived)
        accumulator = rule.begin(_given(combined))
        for contribution in arrived:
            accumulator.fold(contribution)
        combined = accumulator.result()
        found.append(combined)
    return found


def _given(before: Combined) -> Given:
    return Given(spec=before.model.spec, model=lambda: before.model, memory=before.memory)


def check_floats(found: Model, expected: Reals, *, slack: float = 1.0, scale: float = 1.0) -> None:
    """Near to the reference, by the element type; ``scale`` is the size of what went into the sum."""
    for tensor in found.spec.tensors:
        if tensor.dtype in FLOATS:
            exact, near = expected[tensor.name], found[tensor.name].astype(np.float64)
            allowed = slack * TOLERANCE[tensor.dtype] * (np.abs(exact) + scale)
            assert (np.abs(near - exact) <= allowed).all(), (tensor, np.abs(near - exact).max())


def check_whole(found: Model, contributions: list[Contribution], weights: list[float]) -> None:
    """Integers are the weighted mean, rounded; booleans the weighted majority."""
    shares = np.array(weights) / sum(weights)
    for tensor in found.spec.tensors:
        if tensor.dtype not in FLOATS:
            mean = np.tensordot(
                shares, np.stack([c.model[tensor.name].astype(np.float64) for c in contributions]), 1
            )
            if tensor.dtype == "bool":
                clear = np.abs(mean - 0.5) > 1e-9
                assert (found[tensor.name] == (mean > 0.5))[clear].all()
            else:
                assert (np.abs(found[tensor.name].astype(np.float64) - mean) <= 0.5 + 1e-6).all()


def check_refusals(rule: Any, start: Model, contributions: list[Contribution], *bad: Contribution) -> None:
    """Bad updates between good ones change nothing; besides ``bad``, those that every rule refuses."""
    broken = start.copy()
    broken["t0"][-1] = np.nan
    other = Model.of({"t0": np.zeros(2, np.float32)})
    good = contributions[0]
    always = [
        Contribution(learner="x", model=model, num_examples=n, num_steps=1, evaluation=good.evaluation)
        for model, n in ((good.model, 0), (broken, 1), (other, 1))
    ]
    results = []
    for disturbances in ([], [*always, *bad]):
        accumulator = rule.begin(Given(spec=start.spec, model=lambda: start))
        for contribution in contributions:
            for one in disturbances:
                with pytest.raises(UpdateRefused):
                    accumulator.fold(one)
            accumulator.fold(contribution)
        results.append((accumulator.total_weight, accumulator.result()))
    (weight, undisturbed), (other_weight, disturbed) = results
    assert weight == other_weight
    assert undisturbed.model.digest == disturbed.model.digest
    if undisturbed.memory is not None:
        assert undisturbed.memory.digest == disturbed.memory.digest
