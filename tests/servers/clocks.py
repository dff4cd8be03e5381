"""The wall clock of processes, which a test sets: libfaketime, of Debian's package of that name."""

from __future__ import annotations

from pathlib import Path

import pytest


class WallClock:
    """One clock for all that are started with its environment; the monotonic one is left alone."""

    def __init__(self, folder: Path) -> None:
        """Skips the test where libfaketime is not installed."""
        library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
        if library is None:
            pytest.skip("libfaketime is not installed (tests/servers/provide.sh)")
        self._file = folder / "clock"
        self.set(0)
        self.environment = {
            # Redis's own allocator asks for the time before libfaketime can tell it.
            "LD_PRELOAD": f"{library} libc.so.6",
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, ahead_s: int) -> None:
        """Seconds before the true time; from now on, for all at once."""
        partial = self._file.with_name("clock.new")
        partial.write_text(f"{ahead_s:+d}\n")
        partial.replace(self._file)
