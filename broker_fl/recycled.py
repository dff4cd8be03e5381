"""Room for large models, used again: what one update has left, the next one finds.

glibc maps each block of more than 32 MiB anew and gives it back when it is freed, whatever its settings
(``workers/memory.py``), and the kernel clears its pages first: with models of 40 MB that was half of the CPU
time of embedded rounds. Smaller blocks are left to glibc.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

LEAST_BYTES = 32 << 20
KEPT_BYTES = 512 << 20
"""At most, that are free and stay with the process. Larger models are mapped anew."""

_kept: list[npt.NDArray[np.uint8]] = []
_lock = threading.RLock()
"""Of ``_kept``; a room may come back on the thread that holds it, when garbage is collected there."""


def empty(num_bytes: int) -> npt.NDArray[np.uint8]:
    """A flat array; what is in it is undefined. Its memory comes back when nothing refers to it any more,
    views included.
    """
    if not LEAST_BYTES <= num_bytes <= KEPT_BYTES:
        return np.empty(num_bytes, np.uint8)
    return np.asarray(_Room(_taken(num_bytes)))


def _taken(num_bytes: int) -> npt.NDArray[np.uint8]:
    with _lock:
        for place, memory in enumerate(_kept):
            if memory.nbytes == num_bytes:
                return _kept.pop(place)
        if _kept:
            del _kept[0]  # models of that size may have gone out of use
    return np.empty(num_bytes, np.uint8)


class _Room:
    """What an array is a view of, so that its end is noticed."""

    def __init__(self, memory: npt.NDArray[np.uint8]) -> None:
        self._memory = memory

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """NumPy's protocol: address, type and shape."""
        return self._memory.__array_interface__

    def __del__(self) -> None:
        with _lock:
            if sum(memory.nbytes for memory in _kept) + self._memory.nbytes <= KEPT_BYTES:
                _kept.append(self._memory)
