"""Work that is shared out to threads, of which there may be fewer than cores."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from broker_fl.aggregation import parallel
from broker_fl.aggregation.parallel import BLOCK_ELEMENTS, in_blocks
from broker_fl.model import Array

WAIT_S = 60.0
NUM_BLOCKS = 6


@pytest.fixture(autouse=True)
def _three_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A pool of two threads, of which none has been started."""
    monkeypatch.setattr(parallel, "_num_threads", lambda: 3)
    parallel._pool.cache_clear()
    yield
    parallel._pool.cache_clear()


def _cannot_start(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_where_no_thread_can_be_started_the_callers_own_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    total: Array = np.zeros(NUM_BLOCKS * BLOCK_ELEMENTS, np.float32)

    def add(block: slice) -> None:
        total[block] += 1

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _cannot_start)
        in_blocks(total.size, add)
        assert (total == 1).all()
    in_blocks(total.size, add)
    assert (total == 2).all(), "a thread has found what was begun before"


def test_what_no_thread_could_be_started_for_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    total: Array = np.zeros(NUM_BLOCKS * BLOCK_ELEMENTS, np.float32)
    freed = weakref.ref(total)

    def add(block: slice, array: Array) -> None:
        array[block] += 1

    monkeypatch.setattr(threading.Thread, "start", _cannot_start)
    in_blocks(total.size, partial(add, array=total))
    del total
    gc.collect()
    assert freed() is None


def test_a_thread_that_comes_late_to_what_the_pool_failed_to_begin_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is at work for somebody else while the second cannot be started."""
    free, helping, rest_done = threading.Event(), threading.Event(), threading.Event()
    parallel._pool().submit(free.wait, WAIT_S)
    monkeypatch.setattr(threading.Thread, "start", _cannot_start)
    caller, done = threading.get_ident(), np.zeros(NUM_BLOCKS, int)

    def work(block: slice) -> None:
        if threading.get_ident() == caller:
            free.set()
            assert helping.wait(WAIT_S)
        else:
            helping.set()
            assert rest_done.wait(WAIT_S)
            time.sleep(0.05)  # who does not wait for it is back by now; too short can only miss that
        done[block.start // BLOCK_ELEMENTS] += 1
        if done.sum() == NUM_BLOCKS - 1:
            rest_done.set()

    in_blocks(NUM_BLOCKS * BLOCK_ELEMENTS, work)
    assert done.tolist() == [1] * NUM_BLOCKS
