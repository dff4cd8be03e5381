from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from broker_fl import recycled
from broker_fl.model import Model, ModelSpec, TensorSpec

SIZE = recycled.LEAST_BYTES


@pytest.fixture(autouse=True)
def little_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(recycled, "KEPT_BYTES", 8 * SIZE)
    recycled._kept.clear()
    yield
    recycled._kept.clear()


def test_memory_comes_back_only_when_the_last_view_of_it_is_gone() -> None:
    model = Model.blank(ModelSpec((TensorSpec("w", "float32", (SIZE // 4,)),)))
    address, view, words = model.buffer.ctypes.data, model["w"][5:7], model.buffer.data
    del model
    gc.collect()
    other = recycled.empty(SIZE)
    assert other.ctypes.data != address
    assert words.nbytes == SIZE
    del view
    assert recycled.empty(SIZE).ctypes.data != address
    del words
    recycled._kept[:] = [free for free in recycled._kept if free.memory.ctypes.data == address]
    assert recycled.empty(SIZE).ctypes.data == address


def test_a_model_of_recycled_memory_is_made_of_its_views_without_a_copy() -> None:
    model = Model.blank(ModelSpec((TensorSpec("w", "float32", (SIZE // 4,)),)))
    assert Model.of(dict(model), model.spec).buffer.ctypes.data == model.buffer.ctypes.data


def test_what_is_kept_is_limited_and_other_sizes_make_room() -> None:
    all_at_once = [recycled.empty(SIZE) for _ in range(recycled.KEPT_BYTES // SIZE + 3)]
    for array in all_at_once:
        array[::4096] = 1
    del array
    all_at_once.clear()
    kept = len(recycled._kept)
    assert kept * SIZE == recycled.KEPT_BYTES
    recycled.empty(SIZE + 1)
    assert [free.memory.nbytes for free in recycled._kept].count(SIZE) == kept - 1
    before = len(recycled._kept)
    for num_bytes in (0, 10, SIZE - 1, recycled.KEPT_BYTES + 1):
        assert recycled.empty(num_bytes).nbytes == num_bytes
    assert len(recycled._kept) == before
    assert recycled.empty(SIZE).dtype == np.uint8


def test_what_nobody_wants_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recycled, "KEPT_S", 0.05)
    monkeypatch.setattr(recycled, "_watch", None)
    given_back = threading.Event()
    array = recycled.empty(SIZE)
    weakref.finalize(array.base._memory, given_back.set)  # type: ignore[union-attr]
    del array
    assert given_back.wait(60)


def test_what_is_wanted_soon_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recycled, "_watch", None)
    recycled.empty(SIZE)
    recycled.give_back()
    assert len(recycled._kept) == 1
    assert recycled._watch is not None
