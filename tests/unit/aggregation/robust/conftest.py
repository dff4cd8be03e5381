"""The robust rules."""

from __future__ import annotations

import pytest

from broker_fl.aggregation import blocks


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small models have several blocks too."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 64)
    monkeypatch.setattr(blocks, "MIN_WIDTH", 16)
