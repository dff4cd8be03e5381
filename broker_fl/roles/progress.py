"""How far a large transfer is, told now and then: nobody should wonder for minutes whether anything moves."""

from __future__ import annotations

from collections.abc import Callable

EVERY_S = 5.0
"""Between two times of telling; a transfer that is over before the first is not told of."""
LARGE_BYTES = 16 << 20
"""Smaller transfers are never told of."""


class Progress:
    """Of one transfer. ``tell`` is called with the bytes so far and the total, on the thread that adds."""

    def __init__(
        self, total_bytes: int, steady_s: Callable[[], float], tell: Callable[[int, int], None]
    ) -> None:
        self.num_bytes = 0
        self._total_bytes = total_bytes
        self._steady_s = steady_s
        self._tell = tell
        self._tell_at = steady_s() + EVERY_S

    def add(self, num_bytes: int) -> None:
        """So many more have been moved."""
        self.num_bytes += num_bytes
        if self._total_bytes >= LARGE_BYTES and self._steady_s() >= self._tell_at:
            self._tell_at = self._steady_s() + EVERY_S
            self._tell(min(self.num_bytes, self._total_bytes), self._total_bytes)
