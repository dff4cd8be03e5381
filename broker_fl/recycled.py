"""Room for large models, used again: what one update has left, the next one finds.

glibc maps each block of more than 32 MiB anew and gives it back when it is freed, whatever its settings
(``workers/memory.py``), and the kernel clears its pages first: with models of 40 MB that was half of the CPU
time of embedded rounds. On a virtual machine memory that was given back costs more still: the host takes it
away, and to have it again took 3 s of CPU a gigabyte. Smaller blocks are left to glibc.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from broker_fl import machine

LEAST_BYTES = 32 << 20
KEPT_BYTES = max(512 << 20, (machine.memory_bytes() or 0) // 8)
"""At most, that are free and stay with the process. Larger models are mapped anew."""
KEPT_S = 60.0
"""What nobody has wanted for so long is given back: the job is over."""


@dataclass(frozen=True, slots=True)
class _Free:
    memory: npt.NDArray[np.uint8]
    since: float


_kept: list[_Free] = []
_lock = threading.RLock()
"""Of ``_kept`` and ``_watch``; a room may come back on the thread that holds it, when garbage is collected
there.
"""
_watch: threading.Timer | None = None
"""Gives back what nobody wants; there is one while something is in use or kept. It is not started when memory
comes back: that may be anywhere, also where a thread is being started.
"""
_num_in_use = 0


def empty(num_bytes: int) -> npt.NDArray[np.uint8]:
    """A flat array; what is in it is undefined. Its memory comes back when nothing refers to it any more,
    views included.
    """
    if not LEAST_BYTES <= num_bytes <= KEPT_BYTES:
        return np.empty(num_bytes, np.uint8)
    with _lock:
        _have_watched(KEPT_S)
        return np.asarray(_Room(_taken(num_bytes)))


def _taken(num_bytes: int) -> npt.NDArray[np.uint8]:
    with _lock:
        for place, free in enumerate(_kept):
            if free.memory.nbytes == num_bytes:
                return _kept.pop(place).memory
        if _kept:
            del _kept[0]  # models of that size may have gone out of use
    return np.empty(num_bytes, np.uint8)


def _keep(memory: npt.NDArray[np.uint8]) -> None:
    if sum(free.memory.nbytes for free in _kept) + memory.nbytes <= KEPT_BYTES:
        _kept.append(_Free(memory, time.monotonic()))


def _have_watched(seconds: float) -> None:
    global _watch  # noqa: PLW0603 - of the process, as the memory is
    if _watch is None:
        _watch = threading.Timer(seconds, give_back)
        _watch.daemon = True
        _watch.start()


def give_back() -> None:
    """Have the system use again what has been free for ``KEPT_S``."""
    global _watch  # noqa: PLW0603
    with _lock:
        now = time.monotonic()
        _kept[:] = [free for free in _kept if now - free.since < KEPT_S]
        _watch = None
        if _kept or _num_in_use:
            _have_watched(KEPT_S - (now - _kept[0].since) if _kept else KEPT_S)


class _Room:
    """What an array is a view of, so that its end is noticed."""

    def __init__(self, memory: npt.NDArray[np.uint8]) -> None:
        global _num_in_use  # noqa: PLW0603
        self._memory = memory
        _num_in_use += 1

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """NumPy's protocol: address, type and shape."""
        return self._memory.__array_interface__

    def __del__(self) -> None:
        global _num_in_use  # noqa: PLW0603
        with _lock:
            _num_in_use -= 1
            _keep(self._memory)
