"""The benchmarks do what they say, on tiny cells; how fast is not looked at."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import PAGE, RESULTS, read_setting, time_of_next, wrong_setting
from benchmarks.comparison import chosen
from benchmarks.page import write
from benchmarks.peers import flare, flower
from benchmarks.questions import Row, all_questions
from broker_fl.workers.servers import rabbitmq_available, redis_available

ROOT = Path(__file__).parents[2]
HAS_PROC = Path("/proc/self/status").exists()
pytestmark = pytest.mark.timeout(360)  # each starts its servers and processes
OWN_TEST = {"flower", "simulators", "rounds", "reaction", "encodings"}
needs_servers = pytest.mark.skipif(
    not (rabbitmq_available() and redis_available()),
    reason="rabbitmq-server and redis-server are not installed here",
)


def ask(folder: Path, *arguments: str) -> None:
    places = ["--results", str(folder), "--page", str(folder / "page.md")]
    command = [sys.executable, "-m", "benchmarks", "--quick", *places, *arguments]
    subprocess.run(command, cwd=ROOT, check=True)


def rows_of(folder: Path, question: str) -> list[Row]:
    record: dict[str, Any] = json.loads((folder / f"{question}.json").read_text())
    rows: list[Row] = record["rows"]
    return rows


@pytest.mark.parametrize("transport", ["embedded", pytest.param("rabbitmq", marks=needs_servers)])
def test_where_a_rounds_time_goes(transport: str, tmp_path: Path) -> None:
    ask(tmp_path, "rounds", "--transport", transport)
    (row,) = rows_of(tmp_path, "rounds")
    assert len(row["rounds"]) >= 2
    for one in row["rounds"]:
        assert 0 < one["first_update_s"] <= one["last_update_s"] <= one["total_s"] <= one["period_s"]
    names = {"process"} if transport == "embedded" else {"driver", "controller", "learner-0", "learner-1"}
    if transport == "rabbitmq" and HAS_PROC:
        names |= {"rabbitmq", "redis"}
    peaks = row["peak_memory_bytes"]
    assert peaks.keys() == names
    if transport == "rabbitmq" and HAS_PROC:
        shares = row["cpu_share"]
        threads = [share for name, share in shares.items() if "thread" in name]
        assert shares.keys() > names
        assert (
            0 < max(threads) <= sum(threads) <= shares["controller"] + 0.1
        )  # they are read one after the other
    assert min(peaks.values()) > 1e6
    assert all(peak > 10e6 for name, peak in peaks.items() if name != "redis")
    assert f"| {transport} | 2 | 10k |" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize("transport", ["embedded", pytest.param("rabbitmq", marks=needs_servers)])
def test_reaction(transport: str, tmp_path: Path) -> None:
    ask(tmp_path, "reaction", "--transport", transport)
    (row,) = rows_of(tmp_path, "reaction")
    for to_round, to_train in zip(row["submit_to_round_s"], row["submit_to_train_s"], strict=True):
        assert 0 < to_round < to_train
    assert len(row["join_to_train_s"]) == 2
    assert min(row["join_to_train_s"]) > 0
    assert ("startup_s" in row) == (transport == "embedded")
    assert "benchmark-reaction.svg" in (tmp_path / "page.md").read_text()
    assert (tmp_path / "pictures" / "benchmark-reaction.svg").read_text().count("<path") > 5


@needs_servers
def test_flower(tmp_path: Path) -> None:
    """Where it is not installed, the page says so; where it is, its model was checked by its own process."""
    ask(tmp_path, "flower")
    (row,) = rows_of(tmp_path, "flower")
    page = (tmp_path / "page.md").read_text()
    if not flower.PEER.is_there:
        assert "was left out: it is not installed" in page
        return
    (block,) = row["blocks"]
    assert len(block["theirs"]["rounds_s"]) == 2
    assert row["ratios"][0] > 0
    assert "| 2 | 10k |" in page


def test_simulators(tmp_path: Path) -> None:
    ask(tmp_path, "simulators")
    rows = rows_of(tmp_path, "simulators")
    page = (tmp_path / "page.md").read_text()
    for row, peer in zip(rows, (flower.PEER, flare.PEER), strict=True):
        if not peer.is_there:
            assert f"{peer.title} at 2 × 10k was left out: it is not installed" in page
            continue
        (block,) = row["blocks"]
        assert len(block["theirs"]["rounds_s"]) == 2
        assert 0 < block["ours"]["startup_s"] < block["theirs"]["startup_s"] + 60
        assert f"| {peer.title} | 2 | 10k |" in page


def test_encodings(tmp_path: Path) -> None:
    ask(tmp_path, "encodings", "--transport", "embedded")
    lossless, coarse, *timed = rows_of(tmp_path, "encodings")
    assert coarse["parameters"] == lossless["parameters"] > 4_000
    assert 4 * coarse["parameters"] == lossless["up_bytes"] > 3.9 * coarse["up_bytes"]
    assert lossless["final"][0] == pytest.approx(coarse["final"][0], abs=0.1)
    assert [len(row["round_s"]) for row in timed] == [2, 2]
    page = (tmp_path / "page.md").read_text()
    assert "| `int8` | " in page
    assert " kB / 4.9 kB |" in page


@needs_servers
@pytest.mark.parametrize("question", sorted(all_questions().keys() - OWN_TEST))
def test_every_other_question_is_answered(question: str, tmp_path: Path) -> None:
    ask(tmp_path, question)
    rows = rows_of(tmp_path, question)
    assert rows
    assert not [row["failed"] for row in rows if "failed" in row]
    assert f"## {all_questions()[question].title}" in (tmp_path / "page.md").read_text()


def test_a_cell_measured_again_replaces_only_itself(tmp_path: Path) -> None:
    ask(tmp_path, "rounds", "--transport", "embedded", "--cells", "2x10000,3x10000")
    before = rows_of(tmp_path, "rounds")
    ask(tmp_path, "rounds", "--transport", "embedded", "--cells", "3x10000")
    after = rows_of(tmp_path, "rounds")
    assert [row["key"] for row in after] == ["embedded-2x10000", "embedded-3x10000"]
    assert after[0] == before[0]
    assert after[1] != before[1]


@needs_servers
@pytest.mark.skipif(not HAS_PROC, reason="only /proc tells which processes a run started")
def test_a_run_that_is_ended_leaves_nothing_behind(tmp_path: Path) -> None:
    places = ["--results", str(tmp_path), "--page", str(tmp_path / "page.md")]
    asked = ["rounds", "--transport", "rabbitmq", "--cells", "2x1000", "--rounds", "1000000", *places]
    run = subprocess.Popen([sys.executable, "-m", "benchmarks", *asked], cwd=ROOT)
    try:
        wait_until(lambda: any("epmd" in command_of(pid) for pid in descendants(run.pid)))
        started = descendants(run.pid)
    finally:
        run.send_signal(signal.SIGTERM)
        ended_by = run.wait(120)
    assert ended_by == 128 + signal.SIGTERM
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))


def descendants(pid: int) -> set[int]:
    found = {pid}
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        with suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) in found:
                found.add(int(folder.name))
    return found - {pid}


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def wait_until(is_so: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def test_a_setting_asked_for_leaves_those_with_its_values_and_names_of_other_peers_are_ignored() -> None:
    settings: list[dict[str, str | float]] = [
        {"poll-s": poll_s, "layout": layout} for layout in ("one", "several") for poll_s in (0.05, 0.3)
    ]
    assert chosen(settings, {"layout": "several", "poll-s": "0.30"}) == [settings[3]]
    assert chosen(settings, {"layout": "one"}) == settings[:2]
    assert chosen(settings, {}) == chosen(settings, {"cpus": "1.0"}) == settings
    with pytest.raises(ValueError, match=r"no setting has poll-s=7; there are: poll-s=0\.05,layout=one"):
        chosen(settings, {"poll-s": "7"})
    both = [all_questions()[name] for name in ("flower", "simulators")]
    assert wrong_setting(both, {"cpus": "0.50", "poll-s": "0.05"}) == ""
    assert "poll: no peer asked has it; known: check-s, cpus, " in wrong_setting(both, {"poll": "1"})
    assert "no setting has poll-s=0.3" in wrong_setting(both, {"poll-s": "0.3"})
    assert read_setting("poll-s=0.3,layout=one") == {"poll-s": "0.3", "layout": "one"}
    with pytest.raises(ArgumentTypeError, match="not of the form"):
        read_setting("one")


def test_time_that_is_limited_is_shared_and_what_is_left_goes_on() -> None:
    assert time_of_next(100.0, [5, 3, 2], now=0.0) == 50.0
    assert time_of_next(100.0, [3, 2], now=10.0) == 64.0
    assert time_of_next(100.0, [2], now=99.0) == 100.0
    assert time_of_next(float("inf"), [1, 1], now=5.0) == float("inf")


def test_an_unknown_question_is_refused_by_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "flowers", "--results", str(tmp_path)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "'flowers' is not one of: flower, simulators, rounds, " in done.stderr


def test_the_page_is_what_the_kept_results_say(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "benchmarks.md"
    write(page, page.parent / "pictures", RESULTS, all_questions())
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


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
