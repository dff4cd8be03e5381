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

_scratch = threading.local()


def in_blocks(num_elements: int, work: Callable[[slice], None]) -> None:
    """Call ``work`` for each block of ``num_elements``, on all cores; each element is in one block."""
    num_blocks = -(-num_elements // BLOCK_ELEMENTS)
    num_threads = min(_num_threads(), num_blocks)
    if num_threads <= 1:
        _stretch(0, num_elements, work)
        return
    share = -(-num_blocks // num_threads) * BLOCK_ELEMENTS
    others = [
        _pool().submit(_stretch, start, min(start + share, num_elements), work)
        for start in range(share, num_elements, share)
    ]
    _stretch(0, share, work)
    for other in others:
        other.result()


def scratch(num_elements: int, dtype: np.dtype[Any]) -> Array:
    """An array of this thread's own for the block at hand; what is in it is undefined."""
    kept: dict[str, Array] = _scratch.__dict__
    if dtype.str not in kept:
        kept[dtype.str] = np.empty(BLOCK_ELEMENTS, dtype)
    return kept[dtype.str][:num_elements]


def _stretch(start: int, stop: int, work: Callable[[slice], None]) -> None:
    for begin in range(start, stop, BLOCK_ELEMENTS):
        work(slice(begin, min(begin + BLOCK_ELEMENTS, stop)))


def _num_threads() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux says on how many of its cores a process may run
        return os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    """Of all cores but the caller's; made when it is first needed."""
    return ThreadPoolExecutor(max(1, _num_threads() - 1), thread_name_prefix="aggregation")
