"""How a daemon's C library deals with blocks of a megabyte: what every chunk of a model is."""

from __future__ import annotations

import ctypes
import logging

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""Numbers of glibc's ``mallopt`` (malloc.h)."""
KEPT_BYTES = 64 << 20


def keep_freed_blocks() -> bool:
    """Keep blocks of up to 32 MiB for the next chunk instead of giving each back; False where not glibc.

    glibc maps a block of 128 KiB or more anew each time, and the kernel clears its pages again: receiving
    1 MiB bodies then spends most of its time on page faults. Setting any of these ends glibc's own adapting,
    so all three are set. Costs: up to ``KEPT_BYTES`` that stay with the process.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    taken = [
        mallopt(_M_MMAP_THRESHOLD, 32 << 20),
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES),
        mallopt(_M_TOP_PAD, 16 << 20),
    ]
    log.debug("mallopt: %s", taken)
    return all(taken)
