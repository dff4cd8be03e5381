"""Jobs whose models travel encoded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.roles.stage import Stage


@pytest.fixture
def stage(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Stage(tmp_path, heartbeat_s=0.3, lease_ttl_s=0.6) as made:
        yield made
