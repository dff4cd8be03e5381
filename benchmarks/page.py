"""docs/benchmarks.md and its pictures, from the results that are kept, and from nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.questions import Question, Row

Record = dict[str, Any]
"""Of one question: ``facts``, ``command``, ``rows``."""

HEAD = """# Benchmarks

`make bench` measures all of this and writes this page; no figure is typed by hand. One question alone:
`make bench ARGS="flower --cells 10x100000"`. What was measured is kept in `benchmarks/results/`; how it is
done, and how to add a question, is in [benchmarks/README.md](../benchmarks/README.md). Compare figures
within a table, not across machines.
"""
MEASURED = "Measured {when} with `{command}`; up to {busy:.0%} of the CPU was used by others."
MISSING = "## Not measured yet with these scripts\n\n{titles}\n"
BUSY = "**The machine was busy: these figures only show that it works.**"


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
    rows: list[Row] = record["rows"]
    busy = max((row.get("busy_share", 0.0) for row in rows), default=0.0)
    when = sorted({row["when"][:10] for row in rows if "when" in row}) or [record["facts"]["when"]]
    dates = when[0] if len(when) == 1 else f"{when[0]} to {when[-1]}"
    lines = [f"## {question.title}", "", question.text(rows).strip(), ""]
    if picture:
        lines += [f"![{question.title}]({picture})", ""]
    lines.append(MEASURED.format(when=dates, command=record["command"], busy=busy))
    if busy > machine.BUSY_SHARE:
        lines.append(BUSY)
    return "\n".join([*lines, ""])


def _draw(question: Question, rows: list[Row], pictures: Path, page_folder: Path) -> str:
    """Where the picture is, as seen from the page; empty if there is none."""
    if question.plot is None:
        return ""
    path = pictures / f"benchmark-{question.name}.svg"
    return Path(os.path.relpath(path, page_folder)).as_posix() if question.plot(rows, path) else ""


def _facts(records: Mapping[str, Record]) -> str:
    """The machine and the versions; once, where all questions were asked under the same."""
    groups: dict[str, list[str]] = {}
    for name, record in records.items():
        facts = dict(record["facts"])
        for peer, versions in sorted(record.get("peers", {}).items()):
            facts[f"packages of {peer}"] = _packages(versions)
        facts.pop("when", None)
        groups.setdefault("\n".join(f"- {key}: {value}" for key, value in facts.items()), []).append(name)
    parts = ["## Machine and versions", ""]
    for listing, names in groups.items():
        parts += [f"For {', '.join(names)}:", "", listing, ""]
    return "\n".join(parts)


def _packages(versions: Mapping[str, str]) -> str:
    shown: Iterable[str] = ("flwr", "ray", "nvflare", "numpy", "protobuf", "grpcio", "fastapi", "uvicorn")
    return ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)
