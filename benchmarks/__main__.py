"""Answers questions on speed by measuring, and writes the page (``make bench``).

python -m benchmarks                                  # all of them
python -m benchmarks flower --cells 10x100000         # one of them, one cell; the other cells are kept
python -m benchmarks --quick                          # whether it works, in a minute; nothing is kept
python -m benchmarks page                             # the page anew, from what is kept
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import ending, machine, page
from benchmarks.comparison import chosen
from benchmarks.jobs import ENCODING_VARIABLE, ENCODINGS
from benchmarks.peers import Peer, flare, flower
from benchmarks.peers.rounds import TENSORS, TENSORS_VARIABLE
from benchmarks.questions import Cell, Options, Question, Row, all_questions

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
PEERS: tuple[Peer, ...] = (flower.PEER, flare.PEER)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, keep, and write the page."""
    questions = all_questions()
    parser = _parser(list(questions))
    asked = parser.parse_args(arguments)
    if asked.quick and asked.results == RESULTS:
        asked.results = Path(tempfile.mkdtemp(prefix="benchmarks-"))
        asked.page = asked.page if asked.page != PAGE else asked.results / "benchmarks.md"
    options = _options(asked)
    end_at = time.monotonic() + asked.budget_s
    names = [name for name in questions if name in asked.questions or not asked.questions]
    command = "python -m benchmarks " + shlex.join(sys.argv[1:] if arguments is None else arguments)
    wrong = {
        "--tensors": wrong_tensors(names, asked.tensors),
        "--encoding": wrong_encoding(names, asked.encoding),
        "--setting": wrong_setting([questions[name] for name in names], asked.setting),
    }
    if errors := [f"{option}: {why}" for option, why in wrong.items() if why]:
        parser.error("; ".join(errors))
    os.environ |= {TENSORS_VARIABLE: str(asked.tensors), ENCODING_VARIABLE: asked.encoding}
    broken = []
    with ending.of_run():
        about: Row = {}
        if names:
            about = {
                "command": command.strip(),
                "commit": machine.commit(),
                "facts": machine.facts(quick=asked.quick),
            }
            _warn_if_busy()
        for place, name in enumerate(names):
            left = [questions[one].share for one in names[place:]]
            own = replace(options, end_at=time_of_next(end_at, left, time.monotonic()))
            try:
                _ask(questions[name], own, asked.results, about)
            except Exception:  # noqa: BLE001 - a night's run goes on to the next question
                traceback.print_exc()
                broken.append(name)
    pictures = asked.page.parent / "pictures"
    page.write(asked.page, pictures, asked.results, questions)
    print(f"The page: {asked.page}")
    if broken:
        sys.exit(f"Not answered to the end: {', '.join(broken)}; the errors are above.")


def _options(asked: argparse.Namespace) -> Options:
    """How much is asked for."""
    return Options(
        quick=asked.quick,
        cells=asked.cells,
        rounds=2 if asked.quick else asked.rounds,
        repetitions=asked.repetitions,
        cell_s=asked.cell_s,
        setting=asked.setting,
        transports=("embedded", "rabbitmq") if asked.transport == "both" else (asked.transport,),
    )


def wrong_encoding(names: Sequence[str], encoding: str) -> str:
    """What is wrong with an ``--encoding`` for these questions; empty if nothing."""
    return "for the question flower alone" if encoding != ENCODINGS[0] and names != ["flower"] else ""


def wrong_tensors(names: Sequence[str], tensors: int) -> str:
    """What is wrong with a ``--tensors`` for these questions; empty if nothing."""
    if tensors < 1:
        return "at least 1"
    # Rows of the others do not tell how many there were.
    return "for the question flower alone" if tensors != TENSORS and names != ["flower"] else ""


def wrong_setting(questions: Sequence[Question], values: Mapping[str, str]) -> str:
    """What is wrong with a ``--setting``, for the peers of these questions; empty if nothing."""
    groups = [group for question in questions for group in question.settings]
    known = {name for group in groups for name in group[0]}
    if unknown := sorted(values.keys() - known):
        return f"{', '.join(unknown)}: no peer asked has it; known: {', '.join(sorted(known)) or 'none'}"
    try:
        for group in groups:
            chosen([dict(one) for one in group], values)
    except ValueError as error:
        return str(error)
    return ""


def time_of_next(end_at: float, shares: Sequence[float], now: float) -> float:
    """When the next question ends, if what is left until ``end_at`` goes to all by their shares; what one
    does not use goes on to those after it.
    """
    return now + (end_at - now) * shares[0] / sum(shares)


def _parser(names: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = f"{', '.join(names)}, page"

    def question(name: str) -> str:  # ``choices`` would refuse that there is none
        if name not in known.split(", "):
            raise argparse.ArgumentTypeError(f"{name!r} is not one of: {known}")
        return name

    parser.add_argument("questions", nargs="*", type=question, help=f"of: {known}; all if none is given")
    parser.add_argument("--quick", action="store_true", help="a tiny cell each; peers only if installed")
    parser.add_argument(
        "--cells",
        type=read_cells,
        help="LEARNERSxPARAMETERS, as 10x100000,50x1000000; of aggregation UPDATESxPARAMETERS",
    )
    parser.add_argument("--rounds", type=int, default=5, help="counted in a block, at least (default: 5)")
    parser.add_argument("--repetitions", type=int, default=3, help="blocks of each system (default: 3)")
    parser.add_argument(
        "--setting", type=read_setting, default={}, help="of a peer, instead of all: poll-s=0.3,layout=one"
    )
    parser.add_argument(
        "--tensors", type=int, default=TENSORS, help=f"of a model, in flower: rows beside those of {TENSORS}"
    )
    parser.add_argument(
        "--encoding",
        choices=ENCODINGS,
        default=ENCODINGS[0],
        help="of ours, in flower: rows beside those of raw",
    )
    parser.add_argument("--transport", choices=("rabbitmq", "embedded", "both"), default="both")
    parser.add_argument(
        "--budget-s", type=float, default=float("inf"), help="no cell begins later; shared among questions"
    )
    parser.add_argument(
        "--cell-s",
        type=float,
        default=float("inf"),
        help="against a peer: after it, no more blocks in a cell",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON that is kept")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the Markdown goes")
    return parser


def read_cells(text: str) -> tuple[Cell, ...]:
    """Read ``LEARNERSxPARAMETERS,…``."""
    try:
        cells = tuple((int(n), int(p)) for n, _, p in (cell.partition("x") for cell in text.split(",")))
    except ValueError:
        cells = ()
    if not cells or min(min(cell) for cell in cells) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 10x100000,50x1000000")
    return cells


def read_setting(text: str) -> dict[str, str]:
    """Read ``NAME=VALUE,…``."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and value for name, _, value in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form poll-s=0.3,layout=one")
    return {name: value for name, _, value in pairs}


def _ask(question: Question, options: Options, results: Path, about: Row) -> None:
    """Run a question; each row is kept as soon as it is there, with how it was measured, and replaces the
    former one of its key.
    """
    print(f"{time.strftime('%H:%M:%S')} {question.name}: {question.title}", flush=True)
    former = page.read(results, question.name)
    rows: list[Row] = former["rows"] if former else []
    for row in question.run(options):
        print(f"{time.strftime('%H:%M:%S')}   {_brief(row)}", flush=True)
        rows = with_row(rows, {**row, **about})
        record = {"peers": _peers(rows), "rows": rows}
        results.mkdir(parents=True, exist_ok=True)
        (results / f"{question.name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def with_row(rows: list[Row], row: Row) -> list[Row]:
    """A row in the place of its former self; one that was left out or failed replaces no figures, which say
    then that they could not be measured again.
    """
    keys = [one["key"] for one in rows]
    if row["key"] not in keys:
        return [*rows, row]
    former = rows[keys.index(row["key"])]
    if _has_none(row) and not _has_none(former):
        if "failed" not in row:
            return rows
        row = {**former, "failed_since": {"when": row.get("when", ""), "why": row["failed"]}}
    return [row if one["key"] == row["key"] else one for one in rows]


def _has_none(row: Row) -> bool:
    return "left_out" in row or "failed" in row


def _brief(row: Row) -> str:
    """What matters of a row while measuring."""
    shown = {name: row[name] for name in ("left_out", "failed", "ratios", "setting") if name in row}
    return f"{row['key']} " + ", ".join(f"{name}: {value}" for name, value in shown.items())


def _peers(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """The versions in the environments of the peers that were measured."""
    titles = {row.get("peer") for row in rows if "blocks" in row}
    titles |= {title for row in rows for title in row.get("peers", ())}
    return {peer.title: peer.versions() for peer in PEERS if peer.title in titles and peer.is_there}


def _warn_if_busy() -> None:
    if (share := machine.busy_share()) > machine.BUSY_SHARE:
        print(f"Others use {share:.0%} of the CPU: the figures will be worth nothing.", file=sys.stderr)


if __name__ == "__main__":
    main()
