"""Work on flat arrays, block by block on all cores; a block stays in a core's cache while it is worked on.

NumPy lets other threads run while it computes. A chain of its operations on one block then reads and writes
memory as one pass of compiled code does, and needs no temporary larger than the block.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np

from broker_fl.model import Array

BLOCK_ELEMENTS = 1 << 17
"""Half a MiB of float32: a block and its scratch fit into a core's second-level cache."""

FOLD_ELEMENTS = 1 << 18
"""For calls without scratch, many on one block: fewer of them are worth more than a nearer cache."""

PART_ELEMENTS = 1 << 19
"""For a single operation: a tenth of a millisecond, which is worth waking a thread for."""

_scratch = threading.local()


def in_blocks(num_elements: int, work: Callable[[slice], None], size: int = BLOCK_ELEMENTS) -> None:
    """Call ``work`` for each block of ``num_elements``, on all cores; each element is in one block.

    For chains of operations: what one leaves in the cache, the next finds there.
    """
    _share_out(num_elements, work, size)


def in_parts(num_elements: int, work: Callable[[slice], None]) -> None:
    """Call ``work`` for each of a few larger parts of ``num_elements``, on all cores.

    For single operations, which need no cache: between calls, threads wait for Python's lock.
    """
    _share_out(num_elements, work, PART_ELEMENTS)


def _share_out(num_elements: int, work: Callable[[slice], None], size: int) -> None:
    """Whoever is free takes the next part; nobody waits for a core that is busy with something else."""
    if num_elements <= size:
        if num_elements:
            work(slice(0, num_elements))
        return
    starts = iter(range(0, num_elements, size))  # two threads never get the same element of a range

    def take() -> None:
        for start in starts:
            work(slice(start, min(start + size, num_elements)))

    num_others = min(_num_threads(), -(-num_elements // size)) - 1
    others: list[Future[None]] = []
    try:
        others.extend(_begin(take) for _ in range(num_others))
        take()
    finally:  # they write to arrays of the caller, who may be about to give them up
        failures = _failures(others)
    if failures:
        raise failures[0]


def _begin(work: Callable[[], None]) -> Future[None]:
    """Have another thread do it, once one is free; nobody may be where no more threads can be started.

    The pool keeps what it was given also when it raises, and a thread that was there before may still begin
    with it. What became of it is therefore in a future of our own, and of what was cancelled the pool holds
    no array.
    """
    done: Future[None] = Future()
    held = [work]
    done.add_done_callback(lambda _: held.clear())

    def run() -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            held[0]()
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
            done.set_exception(error)
        else:
            done.set_result(None)

    with suppress(RuntimeError, MemoryError):
        _pool().submit(run)
    return done


def _failures(others: list[Future[None]]) -> list[BaseException]:
    """Of those that have begun, once all of these have ended."""
    begun = [other for other in others if not other.cancel()]
    return [failure for other in begun if (failure := other.exception()) is not None]


def scratch(num_elements: int, dtype: np.dtype[Any]) -> Array:
    """An array of this thread's own for the block at hand; what is in it is undefined."""
    kept: dict[str, Array] = _scratch.__dict__
    if dtype.str not in kept or kept[dtype.str].size < num_elements:
        kept[dtype.str] = np.empty(max(num_elements, BLOCK_ELEMENTS), dtype)
    return kept[dtype.str][:num_elements]


def _num_threads() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux says on how many of its cores a process may run
        return os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    """Of all cores but the caller's; made when it is first needed."""
    return ThreadPoolExecutor(max(1, _num_threads() - 1), thread_name_prefix="aggregation")
