"""The benchmarks do what they say, on a tiny cell; how fast is not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from broker_fl.workers.servers import rabbitmq_available, redis_available

ROOT = Path(__file__).parents[2]
HAS_PROC = Path("/proc/self/status").exists()


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
    names = {"process"} if transport == "embedded" else {"driver", "controller", "learner-0", "learner-1"}
    if transport == "rabbitmq" and HAS_PROC:
        names |= {"rabbitmq", "redis"}
    peaks = cell["peak_memory_bytes"]
    assert peaks.keys() == names
    assert min(peaks.values()) > 1e6
    assert all(peak > 10e6 for name, peak in peaks.items() if name != "redis")
    assert f"| {transport} | 2 | 10,000 |" in page.read_text()


@pytest.mark.skipif(not HAS_PROC, reason="only /proc tells a process's own peak from its parent's")
def test_a_childs_peak_memory_is_its_own() -> None:
    """It was its parent's at least, by getrusage: that of a benchmark with a large model."""
    script = (
        "import subprocess, sys\n"
        "from benchmarks.processes import peak_memory_bytes, peak_memory_bytes_of\n"
        "large = bytearray(b'x' * 500_000_000)\n"
        "ask = 'from benchmarks.processes import peak_memory_bytes; print(peak_memory_bytes())'\n"
        "child = subprocess.run([sys.executable, '-c', ask], capture_output=True, text=True, check=True)\n"
        "print(peak_memory_bytes(), child.stdout)\n"
        "assert peak_memory_bytes_of(2**22 + 1) is None\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    parent, child = map(int, ran.stdout.split())
    assert 10e6 < child < 450e6 < parent
