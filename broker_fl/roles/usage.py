"""How much memory this process has."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_PAGE_BYTES = resource.getpagesize()
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def resident_bytes() -> int:
    """At this moment; 0 where the system does not say (it is Linux that does)."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


def peak_bytes() -> int:
    """At most, since the process began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
