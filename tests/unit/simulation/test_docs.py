"""What docs/simulation.md shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from broker_fl.jobfile import read_job

PAGE = (Path(__file__).parents[3] / "docs" / "simulation.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_its_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks("python"):
        exec(compile(block, "docs/simulation.md", "exec"), {})
    assert (tmp_path / "split.svg").is_file()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert sorted(float(row[1]) for row in rows)[:: len(rows) - 1] == [0.1, 1.0]
    assert sum(int(row[2]) for row in rows) == 3
    assert all(float(row[3]) >= 0.02 / float(row[1]) * 0.99 for row in rows)  # speeds are shown rounded


def test_its_job_file_is_one(tmp_path: Path) -> None:
    for block in blocks("toml"):
        (tmp_path / "job.toml").write_text(block, "utf-8")
        world = read_job(tmp_path / "job.toml").simulation
        assert world is not None
        assert len(world.faults) == 2
