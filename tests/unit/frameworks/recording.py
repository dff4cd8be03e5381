"""A task that keeps what it is told."""

from __future__ import annotations

from typing import Any

from broker_fl.errors import TaskCancelled
from broker_fl.frameworks.local import LocalTask


class Recording(LocalTask):
    """Keeps all that progress was told, and is cancelled after ``cancel_after`` reports."""

    def __init__(self, cancel_after: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.told: list[float] = []
        self.cancel_after = cancel_after

    def progress(self, fraction: float) -> None:
        self.told.append(fraction)
        if len(self.told) == self.cancel_after:
            raise TaskCancelled
