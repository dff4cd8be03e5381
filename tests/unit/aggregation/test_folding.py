"""Updates that are added together, and looked at piece by piece, against one by one and as a whole."""

from __future__ import annotations

import ctypes
import gc
import os
import weakref
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_fl import machine
from broker_fl.aggregation import blas, fedavg, kernels, sums
from broker_fl.aggregation.fedavg import FedAvg
from broker_fl.aggregation.looks import MAX_RUNS, Look
from broker_fl.aggregation.parallel import FOLD_ELEMENTS
from broker_fl.aggregation.sums import WeightedSum
from broker_fl.errors import UpdateRefused
from broker_fl.interfaces import Contribution, Given, LazyAccumulator
from broker_fl.model import Array, Model, ModelSpec, TensorSpec

SIZES = (0, 1, 7, 33, 4_099, FOLD_ELEMENTS + 13)
LAYOUTS = (("float32",), ("float64",), ("float32", "int64", "float16"), ("bfloat16", "bool", "float64"))


def model(seed: int, dtypes: tuple[str, ...], size: int) -> Model:
    draw = np.random.default_rng(seed)
    made = Model.empty(ModelSpec(tuple(TensorSpec(f"t{i}", d, (size,)) for i, d in enumerate(dtypes))))
    for array in made.values():
        is_whole = array.dtype.kind in "iub"
        array[...] = draw.integers(0, 2, size) if is_whole else draw.standard_normal(size)
    return made


def one_by_one(updates: list[tuple[Model, float]]) -> WeightedSum:
    total = WeightedSum(updates[0][0].spec)
    for update, weight in updates:
        total.add(update, weight)
    return total


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(LAYOUTS),
    st.sampled_from(SIZES),
    st.lists(st.floats(0.01, 1e4), min_size=1, max_size=11),
    st.sets(st.integers(0, 9)),
    st.sampled_from(["mean", "total"]),
    st.booleans(),
)
def test_together_is_the_same_to_the_last_bit_as_one_by_one(
    dtypes: tuple[str, ...], size: int, weights: list[float], pauses: set[int], end: str, has_blas: bool
) -> None:
    updates = [(model(seed, dtypes, size), weight) for seed, weight in enumerate(weights)]
    with pytest.MonkeyPatch.context() as patch:
        if not has_blas:
            patch.setattr(blas, "_functions", dict)
        alone, together = one_by_one(updates), WeightedSum(updates[0][0].spec)
        for place, (update, weight) in enumerate(updates):
            together.add(update, weight, room=sums.STAGED_BYTES)
            if place in pauses:
                together.settle()
        assert together.total_weight == alone.total_weight
        if end == "mean":
            assert together.mean().digest == alone.mean().digest
        else:
            assert together.total().digest == alone.total().digest


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_the_sum_is_the_same_however_it_is_cut(dtype: type, offset: int) -> None:
    """Kernels take the ends of their stretch, and what is not aligned, in another way than the middle."""
    draw = np.random.default_rng(offset)
    values: Array = draw.standard_normal(1_000 + offset).astype(dtype)[offset:]
    start: Array = draw.standard_normal(1_000).astype(dtype)
    whole: Array = start.copy()
    kernels.add_scaled(whole, values, 0.3)
    for cut in range(0, 1_000, 7):
        pieces: Array = start.copy()
        kernels.add_scaled(pieces[:cut], values[:cut], 0.3)
        kernels.add_scaled(pieces[cut:], values[cut:], 0.3)
        np.testing.assert_array_equal(pieces, whole)


def test_a_blas_that_rounds_the_ends_of_a_stretch_otherwise_is_not_used() -> None:
    """As one does whose vectors have a fused multiply-add, and whose rest has not."""

    def axpby(a: float, x: int, y: int, count: int) -> None:
        if not count:
            return
        values, total = (np.ctypeslib.as_array((ctypes.c_float * count).from_address(at)) for at in (x, y))
        body = count - count % 8
        total[:body] = total[:body] + np.float64(a) * values[:body]
        total[body:] += np.float32(a) * values[body:]

    assert not blas._adds(axpby, "float32")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(LAYOUTS),
    st.lists(st.sampled_from(["good", "nan", "inf", "huge", "weightless"]), min_size=1, max_size=8),
    st.booleans(),
)
def test_who_is_refused_is_left_out_and_the_others_stay(
    dtypes: tuple[str, ...], kinds: list[str], looked_at: bool
) -> None:
    """Refused at once, whatever waits: the learner hears of it, and nobody else's update is lost."""
    start = model(0, dtypes, 50)
    spec, good = start.spec, WeightedSum(start.spec)
    accumulator = FedAvg().begin(Given(spec=spec, model=lambda: start))
    assert isinstance(accumulator, LazyAccumulator)
    for seed, kind in enumerate(kinds):
        update = model(seed, dtypes, 50)
        huge = float(np.finfo(dtypes[0]).max) if dtypes[0] != "bfloat16" else np.inf
        update["t0"][17] = {"nan": np.nan, "inf": -np.inf, "huge": huge}.get(kind, 1.0)
        look = seen(update, 96) if looked_at else None
        contribution = Contribution(
            learner=kind,
            model=update,
            num_examples=0 if kind == "weightless" else seed + 2,
            magnitudes=look.magnitudes() if look is not None else None,
        )
        if kind == "good":
            assert accumulator.fold(contribution) == seed + 2
            good.add(update, seed + 2.0)
        else:
            with pytest.raises(UpdateRefused):
                accumulator.fold(contribution)
    assert accumulator.total_weight == good.total_weight
    if good.total_weight:
        assert accumulator.result().model.digest == good.mean().digest


def seen(update: Model, piece_bytes: int) -> Look:
    """What a look at its pieces has found."""
    look, num_bytes = Look(update.spec), update.spec.num_bytes
    edges = [*range(0, num_bytes, piece_bytes), num_bytes]
    for start, stop in reversed(list(pairwise(edges))):
        look.at(update.buffer, start, stop)
    return look


@pytest.mark.parametrize("dtypes", [*LAYOUTS, ("int8", "float32", "uint8")])
@pytest.mark.parametrize("piece_bytes", [8, 64, 4_096])
def test_looking_at_pieces_finds_what_looking_at_the_whole_finds(
    dtypes: tuple[str, ...], piece_bytes: int
) -> None:
    update = model(3, dtypes, 333)
    found = seen(update, piece_bytes).magnitudes()
    assert found is not None
    assert found == pytest.approx([kernels.magnitude(update.run(run)) for run in update.spec.runs], rel=1e-5)
    for name, array in update.items():
        if array.dtype.kind == "f":
            for bad in (np.nan, np.inf, -np.inf):
                broken = update.copy()
                broken[name][200] = bad
                assert seen(broken, piece_bytes).magnitudes() is None


def test_an_element_cut_in_two_and_many_runs_are_left_to_a_look_at_the_whole() -> None:
    assert seen(model(1, ("float64",), 9), 12).magnitudes() is None
    many = Model.of({f"{i}": np.ones(1, np.float32 if i % 2 else np.float64) for i in range(MAX_RUNS + 1)})
    assert seen(many, 64).magnitudes() is None


def test_squares_that_overflow_are_no_reason_to_refuse() -> None:
    update = Model.of({"a": np.full(9, 2.0**100, np.float32)})
    assert seen(update, 16).magnitudes() is None
    accumulator = FedAvg().begin(Given(spec=update.spec, model=lambda: update))
    accumulator.fold(Contribution(learner="a", model=update, num_examples=4))
    np.testing.assert_array_equal(accumulator.result().model["a"], update["a"])


def test_what_waits_is_bounded_and_let_go_of() -> None:
    total = WeightedSum(model(0, ("float32",), 1 << 18).spec)
    gone: list[int] = []

    def add(seed: int) -> None:
        update = model(seed, ("float32",), 1 << 18)
        weakref.finalize(update.buffer, gone.append, seed)
        total.add(update, 1.0, room=3 << 20)

    for seed in range(10):
        add(seed)
    gc.collect()
    assert len(gone) >= 10 - 3
    total.settle()
    gc.collect()
    assert len(gone) == 10


def test_many_small_ones_wait_no_longer_than_that_helps() -> None:
    update = model(0, ("float32",), 8)
    total = WeightedSum(update.spec)
    for _ in range(sums.STAGED_UPDATES):
        total.add(update, 1.0, room=sums.STAGED_BYTES)
    assert len(total._staged) == sums.STAGED_UPDATES
    total.add(update, 1.0, room=sums.STAGED_BYTES)
    assert len(total._staged) == 1


@pytest.mark.parametrize(("handed", "waiting"), [(False, 0), (True, 2)])
def test_a_large_one_waits_only_where_that_takes_no_memory(
    monkeypatch: pytest.MonkeyPatch, *, handed: bool, waiting: int
) -> None:
    monkeypatch.setattr(fedavg, "STAGED_BYTES", 1 << 20)
    large = model(0, ("float32",), (1 << 18) + 1)
    folding = FedAvg().begin(Given(spec=large.spec, model=lambda: large))
    for learner in "ab":
        folding.fold(Contribution(learner=learner, model=large, num_examples=1, handed=handed))
    assert len(folding._sum._staged) == waiting
    np.testing.assert_array_equal(folding.result().model["t0"], large["t0"])


def test_a_few_handed_over_ones_may_wait_in_a_part_of_the_machine() -> None:
    machine_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.memory_bytes() == machine_bytes
    rooms = {}
    for num_bytes in (4, 100 << 20, machine_bytes):
        spec = ModelSpec((TensorSpec("t", "float32", (num_bytes // 4,)),))
        rooms[num_bytes] = sums.handed_room(spec)
    assert rooms[4] == sums.STAGED_BYTES
    assert rooms[100 << 20] == 300 << 20
    assert rooms[machine_bytes] == machine_bytes // sums.HANDED_SHARE


@pytest.mark.parametrize("number", [10, sums.WIDE_FROM - 1, sums.WIDE_FROM, sums.WIDE_FROM + 1, 20_000])
@pytest.mark.parametrize("weight", [1.0, 600.0])
def test_however_many_equal_updates_give_themselves_back(number: int, weight: float) -> None:
    update = Model.of({"a": np.array([0.1, 0.7, -3.3], np.float32), "n": np.array([7], np.int64)})
    alone, group = WeightedSum(update.spec), WeightedSum(update.spec)
    for _ in range(number):
        alone.add(update, weight, room=sums.STAGED_BYTES)
        group.add(update, weight)
    of_groups = WeightedSum(update.spec)
    of_groups.add_sum(group.total(), number * weight)
    for mean in (alone.mean(), of_groups.mean()):
        np.testing.assert_allclose(mean["a"], update["a"], rtol=2e-6)
        assert mean["n"] == 7


def test_large_models_stay_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "WIDE_BYTES", 100)
    update = model(0, ("float32",), 26)
    total = WeightedSum(update.spec)
    for _ in range(sums.WIDE_FROM + 1):
        total.add(update, 1.0)
    assert total._totals is not None
    assert total._totals[0].dtype == np.float32
