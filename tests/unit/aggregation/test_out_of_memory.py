"""A sum for which memory runs out: whose addition failed is not in it, now or later."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from broker_fl.aggregation import kernels
from broker_fl.aggregation.changes import ChangeSum
from broker_fl.aggregation.sums import STAGED_BYTES, STAGED_UPDATES, WeightedSum
from broker_fl.errors import AggregationError
from broker_fl.interfaces import Given
from broker_fl.model import Model
from tests.unit.aggregation.test_folding import model, one_by_one

LAYOUT = ("float32", "int64", "float16")
"""Of the runs, the last has another type than its sum, so that it is added with scratch."""


def fail_once(patch: pytest.MonkeyPatch, place: object, name: str, *, after: int = 0) -> None:
    """The next call, or a later one, finds no memory."""
    real: Callable[..., Any] = getattr(place, name)
    calls = count()

    def allocate(*args: Any) -> Any:
        if next(calls) == after:
            raise MemoryError
        return real(*args)

    patch.setattr(place, name, allocate)


@pytest.mark.parametrize(("room", "num_before"), [(0, 0), (STAGED_BYTES, STAGED_UPDATES)])
def test_a_sum_that_finds_no_room_goes_on_without_the_update_it_failed_at(
    monkeypatch: pytest.MonkeyPatch, room: int, num_before: int
) -> None:
    updates = [(model(seed, LAYOUT, 40), seed + 1.0) for seed in range(num_before + 3)]
    lost = updates.pop(num_before)
    total = WeightedSum(lost[0].spec)
    for update, weight in updates[:num_before]:
        total.add(update, weight, room=room)
    fail_once(monkeypatch, Model, "blank")
    with pytest.raises(MemoryError):
        total.add(*lost, room=room)
    for update, weight in updates[num_before:]:
        total.add(update, weight, room=room)
    alone = one_by_one(updates)
    assert total.total_weight == alone.total_weight
    assert total.mean().digest == alone.mean().digest


def test_an_addition_that_broke_off_leaves_no_sum_that_could_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first runs were added to, the last one was not: that is nobody's sum."""
    update = model(0, LAYOUT, 40)
    for use in (WeightedSum.mean, WeightedSum.total):
        total = WeightedSum(update.spec)
        total.add(update, 1.0)
        total.add(update, 1.0, room=STAGED_BYTES)
        with monkeypatch.context() as patch:
            fail_once(patch, kernels, "scratch")
            with pytest.raises(MemoryError):
                total.settle()
        total.settle()
        with pytest.raises(AggregationError, match="broke off"):
            total.add(update, 1.0, room=STAGED_BYTES)
        with pytest.raises(AggregationError, match="broke off"):
            use(total)


def test_a_sum_of_changes_that_broke_off_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    update = model(0, LAYOUT, 40)
    for use in (ChangeSum.moved, ChangeSum.totals):
        total = ChangeSum(Given(spec=update.spec, model=lambda: update))
        total.add_change(update, 1.0)
        with monkeypatch.context() as patch:
            fail_once(patch, kernels, "add_scaled", after=1)
            with pytest.raises(MemoryError):
                total.add_change(update, 1.0)
        assert total.total_weight == 1.0
        with pytest.raises(AggregationError, match="broke off"):
            total.add_change(update, 1.0)
        with pytest.raises(AggregationError, match="broke off"):
            use(total)
