"""Work on flat arrays, block by block on all cores; a block stays in a core's cache while it is worked on.

NumPy lets other threads run while it computes. A chain of its operations on one block then reads and writes
memory as one pass of compiled code does, and needs no temporary larger than the block.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from broker_fl.model import Array

BLOCK_ELEMENTS = 1 << 17
"""Half a MiB of float32: a block and its scratch fit into a core's second-level cache."""

CORE_ELEMENTS = 1 << 19
"""Below it a second core is not worth the waking of its thread, for a single operation."""

_scratch = threading.local()


def in_blocks(num_elements: int, work: Callable[[slice], None]) -> None:
    """Call ``work`` for each block of ``num_elements``, on all cores; each element is in one block.

    For chains of operations: what one leaves in the cache, the next finds there.
    """

    def block_by_block(part: slice) -> None:
        for begin in range(part.start, part.stop, BLOCK_ELEMENTS):
            work(slice(begin, min(begin + BLOCK_ELEMENTS, part.stop)))

    _share_out(num_elements, block_by_block, BLOCK_ELEMENTS)


def by_core(num_elements: int, work: Callable[[slice], None]) -> None:
    """Call ``work`` for as many parts of ``num_elements`` as there are cores, at once.

    For single operations: between calls, threads wait for Python's lock.
    """
    _share_out(num_elements, work, CORE_ELEMENTS)


def _share_out(num_elements: int, work: Callable[[slice], None], least: int) -> None:
    if not num_elements:
        return
    num_threads = max(1, min(_num_threads(), num_elements // least))
    share = -(-num_elements // (num_threads * BLOCK_ELEMENTS)) * BLOCK_ELEMENTS
    others = [
        _pool().submit(work, slice(start, min(start + share, num_elements)))
        for start in range(share, num_elements, share)
    ]
    work(slice(0, min(share, num_elements)))
    for other in others:
        other.result()


def scratch(num_elements: int, dtype: np.dtype[Any]) -> Array:
    """An array of this thread's own for the block at hand; what is in it is undefined."""
    kept: dict[str, Array] = _scratch.__dict__
    if dtype.str not in kept:
        kept[dtype.str] = np.empty(BLOCK_ELEMENTS, dtype)
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
