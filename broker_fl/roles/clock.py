"""The time that roles go by."""

from __future__ import annotations

import time


class Clock:
    """Unix time at the start, and steady from there: a jump of the machine's clock moves no deadline."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        """Seconds since 1970, never going back."""
        return self._offset + time.monotonic()
