"""Hosts whose learners are one group: real roles on the memory transport and SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.roles.stage import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path, heartbeat_s=0.2, lease_ttl_s=1.0) as made:
        yield made
