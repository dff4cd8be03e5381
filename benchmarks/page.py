"""docs/benchmarks.md and its pictures, from the results that are kept, and from nothing else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.questions import Question, Row
from benchmarks.tables import cell_name

Record = dict[str, Any]
"""Of one question: ``rows``, each with the ``command``, ``commit`` and ``facts`` it was measured with, and
the versions of ``peers``."""

HEAD = """# Benchmarks

`make bench` measures all of this and writes this page; no figure is typed by hand. One question alone:
`make bench ARGS="flower --cells 10x100000"`. What was measured is kept in `benchmarks/results/`; how it is
done, and how to add a question, is in [benchmarks/README.md](../benchmarks/README.md). Rows of a table may
have been measured at different times and on different machines, which is said below it: ratios are of one
machine and one run each, seconds of rows that are not of the same run are not for comparing.
"""
MEASURED = "Measured {when} with {command}{commit}{cpu}; up to {busy:.0%} of the CPU was used by others."
BANDWIDTH = "memory bandwidth"
"""Measured by every run, and never quite the same."""
MISSING = "## Not measured yet with these scripts\n\n{titles}\n"
BUSY = "**The machine was busy, which only shows that it works: {rows}.**"


def read(results: Path, name: str) -> Record | None:
    """What was kept of a question."""
    path = results / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write(path: Path, pictures: Path, results: Path, questions: Mapping[str, Question]) -> None:
    """Write the page, and a picture for each question that has one."""
    kept = {question.name: read(results, question.name) for question in questions.values()}
    records = {name: record for name, record in kept.items() if record and record["rows"]}
    parts = [HEAD]
    for name, record in records.items():
        question = questions[name]
        parts.append(_section(question, record, _draw(question, record["rows"], pictures, path.parent)))
    if missing := [question.title for name, question in questions.items() if name not in records]:
        parts.append(MISSING.format(titles="\n".join(f"- {title}" for title in missing)))
    if records:
        parts.append(_facts(records))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts), encoding="utf-8")


def _section(question: Question, record: Record, picture: str) -> str:
    rows = _good(record["rows"])
    lines = [f"## {question.title}", "", question.text(rows).strip() if rows else "(nothing measured)", ""]
    if gaps := _gaps(question, record["rows"]):
        lines += [gaps, ""]
    if picture:
        lines += [f"![{question.title}]({picture})", ""]
    lines += [*_measured(question, rows)]
    if busy := [row for row in rows if row.get("busy_share", 0.0) > machine.BUSY_SHARE]:
        lines += ["", BUSY.format(rows=_names(question, busy, rows))]
    return "\n".join([*lines, ""])


def _good(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "failed" not in row]


def _gaps(question: Question, rows: Sequence[Row]) -> str:
    """What failed, and what was not measured at all."""
    lines = [
        f"- {_name(question, row)} failed: `{_one_line(row['failed'])}`" for row in rows if "failed" in row
    ]
    lines += [
        f"- {_name(question, row)}: when measured again, {row['failed_since']['when']}, "
        f"it failed: `{_one_line(row['failed_since']['why'])}`"
        for row in rows
        if "failed_since" in row
    ]
    there = {row["key"] for row in rows}
    if absent := [name for key, name in question.keys.items() if key not in there]:
        lines.append(f"- Not measured: {'; '.join(absent)}.")
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return " ".join(text.split())[-300:].replace("`", "'")


def _measured(question: Question, rows: Sequence[Row]) -> list[str]:
    """When and how: once for all rows that were measured in the same way."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if "left_out" not in row:
            how = row.get("command", ""), row.get("commit", ""), row.get("facts", {}).get("CPU", "")
            groups.setdefault(how, []).append(row)
    found = []
    for (command, commit, cpu), those in groups.items():
        days = sorted({row["when"][:10] for row in those if "when" in row})
        line = MEASURED.format(
            when=" to ".join(dict.fromkeys((days[0], days[-1]))) if days else "",
            command=f"`{command}`" if command else "a command that was not kept",
            commit=f" at commit {commit}" if commit else "",
            cpu=f" on {cpu}" if cpu else "",
            busy=max(row.get("busy_share", 0.0) for row in those),
        )
        found.append(f"- {_names(question, those, ())}: {line}" if len(groups) > 1 else line)
    return found


def _names(question: Question, rows: Sequence[Row], all_rows: Sequence[Row]) -> str:
    """Of rows, on the page."""
    if len(rows) == len(all_rows):
        return "all of it"
    return ", ".join(_name(question, row) for row in rows)


def _name(question: Question, row: Row) -> str:
    """Of one that no whole run makes, as of a cell in another encoding, what its key says."""
    key = str(row["key"])
    return question.keys.get(key) or re.sub(
        r"\b(\d+)x(\d+)\b", lambda found: cell_name((int(found[1]), int(found[2]))), key
    )


def _draw(question: Question, rows: list[Row], pictures: Path, page_folder: Path) -> str:
    """Where the picture is, as seen from the page; empty if there is none."""
    if question.plot is None or not (rows := _good(rows)):
        return ""
    path = pictures / f"benchmark-{question.name}.svg"
    return Path(os.path.relpath(path, page_folder)).as_posix() if question.plot(rows, path) else ""


def _facts(records: Mapping[str, Record]) -> str:
    """The machine and the versions; once, where all questions were asked under the same."""
    groups: dict[str, dict[str, set[str]]] = {}
    for name, record in records.items():
        peers = {
            f"packages of {peer}": _packages(versions)
            for peer, versions in sorted(record.get("peers", {}).items())
        }
        known = [row.get("facts") or record.get("facts", {}) for row in record["rows"]]
        for own in filter(None, known):
            facts = {**own, **peers}
            differing = {key: facts.pop(key, "") for key in ("when", BANDWIDTH)}
            listing = "\n".join(f"- {key}: {value}" for key, value in facts.items())
            groups.setdefault(listing, {}).setdefault(name, set()).add(differing[BANDWIDTH])
    parts = ["## Machine and versions", ""]
    for listing, names in groups.items():
        speeds = sorted(set().union(*names.values()) - {""})
        parts += [f"For {', '.join(names)}:", "", listing]
        parts += [f"- {BANDWIDTH}: {'; or '.join(speeds)}"] if speeds else []
        parts.append("")
    if without := [name for name, record in records.items() if _some_without(record)]:
        parts += [f"What some rows were measured on was not kept: {', '.join(without)}.", ""]
    return "\n".join(parts)


def _some_without(record: Record) -> bool:
    """Whether it has figures of a machine that is not known."""
    return any(
        "left_out" not in row and not (row.get("facts") or record.get("facts")) for row in record["rows"]
    )


def _packages(versions: Mapping[str, str]) -> str:
    shown: Iterable[str] = ("flwr", "ray", "nvflare", "numpy", "protobuf", "grpcio", "fastapi", "uvicorn")
    return ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)
