"""The benchmarks do what they say, on a tiny cell; how fast is not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from broker_fl.workers.servers import rabbitmq_available, redis_available

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("transport", ["embedded", "rabbitmq"])
def test_round_overhead(transport: str, tmp_path: Path) -> None:
    if transport == "rabbitmq" and not (rabbitmq_available() and redis_available()):
        pytest.skip("rabbitmq-server and redis-server are not installed here")
    out, page = tmp_path / "cells.json", tmp_path / "page.md"
    options = ["--quick", "--transport", transport, "--out", str(out), "--page", str(page)]
    subprocess.run([sys.executable, "-m", "benchmarks.round_overhead", *options], cwd=ROOT, check=True)
    (cell,) = json.loads(out.read_text())["cells"]
    assert len(cell["rounds"]) == 2
    for one in cell["rounds"]:
        assert 0 < one["first_update_s"] <= one["last_update_s"] <= one["total_s"]
    names = {"process"} if transport == "embedded" else {"controller", "learner-0", "learner-1"}
    assert cell["peak_memory_bytes"].keys() == names
    assert min(cell["peak_memory_bytes"].values()) > 10e6
    assert f"| {transport} | 2 | 10,000 |" in page.read_text()
