"""Facts of the machine that this process runs on."""

from __future__ import annotations

import os
from functools import cache


@cache
def memory_bytes() -> int | None:
    """Its physical memory; None where the system does not say (it does on Linux and macOS)."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
