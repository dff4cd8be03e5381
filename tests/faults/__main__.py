"""``python -m tests.faults``: every fault at every phase of a round, on real servers, and the table of it."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.faults import cells, standby, table
from tests.faults.bench import private_bench
from tests.faults.cells import Bench, Outcome

Cell = tuple[str, str, str]


def main() -> int:
    """The exit code: 1 if a cell is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--write", type=Path, help="the table; its JSON is written beside it")
    parser.add_argument("--only", default="", help="cells whose name (target/fault/phase) holds these words")
    parser.add_argument(
        "--add", action="store_true", help="to the cells that --write has, in place of theirs"
    )
    parser.add_argument("--from-json", action="store_true", help="make the table anew from its JSON")
    given = parser.parse_args()
    if given.from_json:
        given.write.write_text(table.markdown(_written(given.write)))
        return 0
    wanted = [cell for cell in every_cell() if all(word in "/".join(cell) for word in given.only.split())]
    began, outcomes = time.time(), list(play_all(wanted))
    result = table.result(outcomes, began)
    if given.add:
        result = table.added(_written(given.write), result, every_cell())
    if given.write:
        given.write.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        given.write.write_text(table.markdown(result))
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


def _written(page: Path) -> dict[str, Any]:
    """The JSON beside a table."""
    result: dict[str, Any] = json.loads(page.with_suffix(".json").read_text())
    return result


def every_cell() -> list[Cell]:
    """All that the table has, in its order."""
    alone = itertools.product(cells.TARGETS, cells.FAULTS, cells.PHASES)
    controllers = itertools.product([standby.TARGET], standby.FAULTS, cells.PHASES)
    servers = itertools.product(standby.SERVERS, ["freeze, thaw"], cells.PHASES)
    return [*alone, *controllers, *servers]


def play_all(wanted: Iterable[Cell]) -> Iterable[Outcome]:
    """One after the other on the same processes and servers; after a failure, on new ones."""
    left = list(wanted)
    while left:
        with (
            tempfile.TemporaryDirectory(prefix="broker-fl-faults-") as root,
            private_bench(Path(root)) as bench,
        ):
            while left:
                played = _play(left.pop(0), bench)
                print(json.dumps(played.as_json()), flush=True)
                yield played
                if not played.is_good:
                    break


def _play(cell: Cell, bench: Bench) -> Outcome:
    target, fault, phase = cell
    try:
        if target == standby.TARGET:
            return standby.play(fault, phase, bench)  # type: ignore[arg-type]
        if target in standby.SERVERS:
            return standby.play_server(target, phase, bench)  # type: ignore[arg-type]
        return cells.play(target, fault, phase, bench)  # type: ignore[arg-type]
    except Exception as error:  # noqa: BLE001 - a cell that hangs is a result
        print(error, file=sys.stderr)
        return Outcome(
            target=target,
            fault=fault,
            phase=phase,
            state=f"{type(error).__name__}: {str(error)[:100]}",
            lost=0,
            twice=0,
            equal=False,
            recovery_s=0.0,
            trained_again=0,
        )


if __name__ == "__main__":
    sys.exit(main())
