"""What a benchmark does when a system fails, and which of a peer's settings it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, ours, page
from benchmarks.__main__ import RESULTS, ROOT, with_row
from benchmarks.cells import cell_by_cell
from benchmarks.comparison import Comparison, better_alone, gaps, is_measured
from benchmarks.ours import OursFailed, alone
from benchmarks.peers import Peer, PeerFailed
from benchmarks.peers.rounds import check_weights, constant_of, initial_weights
from benchmarks.questions import Cell, Options, Question, Row, aggregation, asynchronous, many_learners
from benchmarks.sweep import Setting

CELL = (2, 1_000)
SETTINGS: list[Setting] = [{"poll-s": 0.1}, {"poll-s": 1.0}]


class Scripted(Peer):
    """A peer whose rounds take as long as is said for its setting; so many runs work."""

    def __init__(self, round_s: Mapping[str, float], works: int = 1_000) -> None:
        super().__init__(name="scripted", title="Scripted 1", packages=(), environment={})
        object.__setattr__(self, "script", {"round_s": round_s, "works": works})

    def run(self, arguments: Sequence[str], timeout_s: float, *, module: str = "") -> dict[str, Any]:
        """As its script says."""
        script: dict[str, Any] = self.script  # type: ignore[attr-defined]
        script["works"] -= 1
        round_s = script["round_s"].get(arguments[arguments.index("--poll-s") + 1])
        if script["works"] < 0 or round_s is None:
            raise PeerFailed("it ended with status 1")
        return {"rounds_s": [round_s, round_s]}


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.OthersShare, "so_far", lambda _: 0.25)


def our_rounds(_learners: int, _parameters: int, rounds: int) -> dict[str, Any]:
    return {"rounds": [{"period_s": 0.5}] * rounds}


def measure(peer: Peer, *, repetitions: int = 3, defaults: Setting | None = None) -> Row:
    held = Comparison(peer, engine=[], ours=our_rounds, settings=SETTINGS, defaults=defaults)
    row = held.measure(CELL, Options(repetitions=repetitions), our_rounds=2)
    return {**row, "num_learners": 2, "num_parameters": 1_000}


def test_a_peer_that_never_works_is_a_row_that_failed() -> None:
    row = measure(Scripted({}))
    assert row["failed"] == "it ended with status 1"
    assert row["busy_share"] == 0.25
    assert not is_measured(row)


def test_ours_may_fail_as_well() -> None:
    def fail(*_: int) -> dict[str, Any]:
        raise OursFailed("no broker")

    held = Comparison(Scripted({"0.1": 1, "1.0": 1}), engine=[], ours=fail, settings=SETTINGS, defaults=None)
    assert held.measure(CELL, Options(), 2)["failed"] == "no broker"


def test_blocks_before_a_failure_are_kept() -> None:
    row = measure(Scripted({"0.1": 1.0, "1.0": 2.0}, works=4))  # two of the sweep, two blocks
    assert len(row["blocks"]) == len(row["ratios"]) == 2
    assert row["ratios"] == [2.0, 2.0]
    assert "Scripted 1 at 2 × 1k: 2 blocks only, the next failed: `it ended with status 1`" in gaps([row])


def test_blocks_alternate_at_least_once_however_long_the_sweep_took() -> None:
    peer = Scripted({"0.1": 1.0, "1.0": 2.0})
    held = Comparison(peer, engine=[], ours=our_rounds, settings=SETTINGS, defaults=None)
    assert len(held.measure(CELL, Options(repetitions=3, cell_s=0.0), 2)["blocks"]) == 2
    assert len(held.measure(CELL, Options(repetitions=1, cell_s=0.0), 2)["blocks"]) == 1


def test_a_search_begins_with_what_was_best_with_a_model_of_that_size() -> None:
    peer = Scripted({"0.1": 2.0, "1.0": 1.0})
    held = Comparison(peer, engine=[], ours=our_rounds, settings=SETTINGS, defaults=None)
    firsts = [held.measure(cell, Options(), 2)["sweep"][0]["setting"] for cell in (CELL, CELL, (2, 2_000))]
    assert firsts == [{"poll-s": 0.1}, {"poll-s": 1.0}, {"poll-s": 0.1}]


@pytest.mark.parametrize(("default_s", "taken"), [(0.7, 3.0), (1.3, 0.1), (None, 0.1)])
def test_what_the_peer_does_by_itself_is_taken_where_it_is_best(
    default_s: float | None, taken: float
) -> None:
    round_s = {"0.1": 1.0, "1.0": 2.0} | ({"3.0": default_s} if default_s else {})
    row = measure(Scripted(round_s), defaults={"poll-s": 3.0})
    assert row["setting"] == {"poll-s": taken}
    assert row["ratios"] == [round_s[str(taken)] / 0.5] * 3
    assert better_alone([row]) == ""


def test_where_it_was_faster_by_itself_after_all_the_page_says_by_how_much() -> None:
    row = measure(Scripted({"0.1": 1.0, "1.0": 2.0}), defaults={"poll-s": 3.0})
    row["defaults"] = {"median_s": 0.75}
    assert "Scripted 1 at 2 × 1k, 1.50×" in better_alone([row])


def test_a_cell_that_fails_is_a_row_and_the_next_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda _: 10**12)

    def measured(cell: Cell) -> dict[str, Any]:
        if cell[0] == 2:
            raise AssertionError("1 of 2 learners joined")
        return {"rounds": []}

    first, second = cell_by_cell(Options(), ((2, 10), (3, 10)), (1, 1), measured)
    assert first["failed"] == "AssertionError: 1 of 2 learners joined"
    assert "failed" not in second
    assert first["busy_share"] == second["busy_share"] == 0.25


def test_a_failure_erases_no_figures_and_is_told() -> None:
    good, bad = {"key": "2x10", "rounds": [1]}, {"key": "2x10", "failed": "no broker", "when": "today"}
    (kept,) = with_row([good], bad)
    assert kept["rounds"] == [1]
    assert kept["failed_since"] == {"when": "today", "why": "no broker"}
    assert with_row([kept], good) == [good]
    assert with_row([bad], good) == [good]
    assert with_row([], bad) == [bad]


def test_the_page_lists_what_failed_and_what_is_absent_and_how_each_row_was_measured(tmp_path: Path) -> None:
    def run(_: Options) -> Iterator[Row]:
        yield from ()

    def text(rows: Sequence[Row]) -> str:
        return f"{[row['key'] for row in rows]}"

    keys = {name: f"cell {name}" for name in "abcd"}
    question = Question(name="one", title="One", place=1, run=run, text=text, keys=keys)
    how = {"when": "2026-01-01 10:00", "commit": "abc", "facts": {"CPU": "fast", "when": "now"}}
    rows = [
        {"key": "a", "command": "first", **how},
        {"key": "b", "command": "second", **how},
        {"key": "c", "command": "second", **how, "failed": "no\nbroker"},
        {"key": "e", "command": "third", "busy_share": 0.5},
    ]
    (tmp_path / "one.json").write_text(json.dumps({"rows": rows}))
    page.write(tmp_path / "page.md", tmp_path, tmp_path, {"one": question})
    shown = (tmp_path / "page.md").read_text()
    assert "['a', 'b', 'e']" in shown
    assert "- cell c failed: `no broker`\n- Not measured: cell d.\n" in shown
    assert "- cell a: Measured 2026-01-01 with `first` at commit abc on fast; up to 0%" in shown
    assert "- cell b: Measured 2026-01-01 with `second`" in shown
    assert shown.count("- CPU: fast") == 1
    assert "which only shows that it works: e.**" in shown
    assert shown.count("For one:") == 1
    assert shown.endswith("What some rows were measured on was not kept: one.\n")


def test_more_learners_are_held_against_few() -> None:
    rows: list[Row] = [
        {"transport": "embedded", "num_parameters": 1_000, "num_learners": learners, "per_s": [per_s]}
        for learners, per_s in ((2, 50.0), (10, 70.0), (200, 40.0))
    ]
    told = asynchronous.text(rows)
    assert "fewest versions a second are 0.80× as many, with 200; with 200 learners 0.80×." in told
    rows[1]["per_s"], rows[2]["per_s"] = [40.0], [50.0]
    told = asynchronous.text(rows)
    assert "0.80× as many, with 10; with 200 learners 1.00×. Flat wanted (at least 0.9×): missed." in told


def test_growth_is_told_of_one_machine_only() -> None:
    rows: list[Row] = [
        {
            "key": str(learners),
            "num_learners": learners,
            "grouped": False,
            "sample": 0,
            "rounds_s": [round_s],
            "controller_bytes": 1e8,
            "facts": {"CPU": cpu},
        }
        for learners, round_s, cpu in ((100, 1.0, "one"), (1_000, 11.0, "one"), (10_000, 40.0, "other"))
    ]
    told = many_learners._growth(rows, grouped=False)
    assert "from 100 to 1,000 learners a round takes 11.0 times as long" in told
    assert "10,000" not in told
    assert "1 more cannot be told" in told
    assert told.endswith("reached with 1.10× at 1,000.")
    rows[1]["facts"] = {"CPU": "other"}
    assert "missed" not in many_learners._growth(rows, grouped=False)  # 4 times as long for ten times as many
    rows[1]["facts"] = {"CPU": "third"}
    assert many_learners._growth(rows, grouped=False) == ""


def test_what_measured_a_row_is_in_the_history() -> None:
    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    if git("rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("no checkout with its whole history")
    named = {
        row["commit"]: f"{path.stem}: {row['key']}"
        for path in RESULTS.glob("*.json")
        for row in json.loads(path.read_text("utf-8"))["rows"]
        if row.get("commit")
    }
    assert len(named) > 1
    unknown = {
        name: row
        for name, row in named.items()
        if not git("rev-parse", "-q", "--verify", f"{name}^{{commit}}")
    }
    assert not unknown, "measured with code that nobody can have"


def test_versions_are_counted_once_as_many_were_made_as_there_are_learners() -> None:
    times_s = [0.0, 7.0, 8.0, 9.0, 9.5, 10.0]  # of two learners, the first of which was slow to begin
    assert asynchronous.per_second(times_s, num_learners=2, block=2) == [1.0, 2.0]


def test_cells_that_take_turns_are_kept_after_each_and_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(_: Any, num_learners: int, *__: int) -> dict[str, Any]:
        return {"versions": 1, "per_s": [float(num_learners)]}

    monkeypatch.setattr(ours, "alone", measured)
    options = Options(repetitions=2, cells=((2, 1_000), (3, 1_000)), transports=("embedded",))
    rows = list(asynchronous.run(options))
    assert [row["per_s"] for row in rows] == [[2.0], [3.0], [3.0, 3.0], [2.0, 2.0]]
    monkeypatch.setattr(machine, "memory_bytes", lambda _: 0)
    assert all("left_out" in row for row in asynchronous.run(options))


def test_cells_asked_for_are_those_measured(capsys: pytest.CaptureFixture[str]) -> None:
    asked = many_learners._cells(Options(cells=((100_000, 20), (7, 20), (10, 100_000))))
    assert [cell.key for cell in asked] == [
        "grouped-100000-all",
        "grouped-100000-1000",
        "grouped-7-all",
        "alone-7-all",
    ]
    assert list(aggregation._shapes(Options(cells=((8, 1_000_000),)))) == ["20 tensors, 4 MB (in cache)"]
    assert not aggregation._shapes(Options(cells=((10, 100_000),)))
    assert "aggregation has no cells but 8x1" in capsys.readouterr().out


def test_the_check_of_the_weights_sees_each_learner() -> None:
    """Also the one in the middle, in one of many rounds."""
    for num_learners, num_rounds in ((2, 3), (25, 31), (200, 6)):
        constants = [constant_of(index) for index in range(num_learners)]
        assert len(set(constants)) == num_learners
        mean = sum(constants) / num_learners
        whole = {name: array + num_rounds * mean for name, array in initial_weights(1_000).items()}
        check_weights(whole, num_learners, num_rounds)
        for index in (0, num_learners // 2, num_learners - 1):
            others = (sum(constants) - constants[index]) / (num_learners - 1)
            for wrong in (others, (sum(constants) + constants[index]) / (num_learners + 1)):
                lost = {name: array + (wrong - mean) for name, array in whole.items()}
                with pytest.raises(AssertionError, match="Not equal to tolerance"):
                    check_weights(lost, num_learners, num_rounds)


def test_others_are_all_that_did_not_come_of_this_process() -> None:
    init, kernel, me, child, grandchild, adopted, shell, editor = 1, 2, 50, 60, 40, 70, 30, 80
    table = [
        (0, 0, init, 1),
        (0, 0, kernel, 2),
        (1, kernel, 9, 4),
        (5, init, shell, 8),
        (9, shell, me, 16),
        (11, me, child, 32),
        (12, child, grandchild, 64),
        (13, me, adopted, 128),
        (14, shell, editor, 256),
    ]
    assert machine.others_ticks(table, me) == {(0, init): 1, (5, shell): 8, (14, editor): 256}


def test_what_the_host_takes_away_is_others_too() -> None:
    before = machine.Counted(1_000, 20, {(1, 9): 50})
    after = machine.Counted(2_000, 120, {(1, 9): 150, (7, 10): 50})
    assert machine.others_share(before, after) == (100 + 100 + 50) / 1_000
    assert machine.others_share(before, before) == 0.0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only /proc tells who works")
def test_what_our_children_work_is_ours_and_what_an_orphan_works_is_others() -> None:
    work = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    orphan = subprocess.Popen(
        ["sh", "-c", f"exec 3<&0; {sys.executable} -c '{work}' <&3 & echo $!"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert orphan.stdout is not None
    orphans_pid = int(orphan.stdout.readline())
    for one in (child, orphan):
        assert one.stdout is not None
        one.stdout.readline()
    orphan.wait()
    others = machine.counted().others
    ticks = {pid: worked for (_, pid), worked in others.items()}
    assert child.pid not in ticks
    assert ticks[orphans_pid] >= 0.25 * os.sysconf("SC_CLK_TCK")
    for one in (child, orphan):
        one.communicate(b"\n")


def hang() -> dict[str, Any]:
    threading.Event().wait()
    return {}


def test_a_measurement_that_hangs_is_ended() -> None:
    with pytest.raises(OursFailed, match="hang was not done after 0"):
        alone(hang, timeout_s=0.0)
