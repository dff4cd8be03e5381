"""Where commands are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.calling import APP


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with ``app.py`` in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.py").write_text(APP, encoding="utf-8")
    return tmp_path
