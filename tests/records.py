"""Runs too long for the tests, on record: JSON beside the script that ran, and a table of it in the docs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

DOC = Path(__file__).parents[1] / "docs" / "faults.md"
Run = dict[str, Any]


def today() -> str:
    """In UTC."""
    return datetime.now(UTC).date().isoformat()


def commit() -> str:
    """What was run; with a ``+`` where code differs from it."""
    changed = _git("status", "--porcelain", "--", "*.py")
    return (_git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


def _git(*words: str) -> str:
    said = subprocess.run(["git", *words], cwd=DOC.parents[1], capture_output=True, text=True, check=False)
    return said.stdout.strip()


class Record:
    """One file, and its table between ``<!-- NAME -->`` and ``<!-- end of NAME -->``."""

    def __init__(
        self,
        path: Path,
        name: str,
        columns: Mapping[str, Callable[[Run], object]],
        doc: Path = DOC,
    ) -> None:
        self._path = path
        self._name = name
        self._columns = columns
        self._doc = doc

    def runs(self) -> list[Run]:
        """All that are on record, oldest first."""
        return list(json.loads(self._path.read_text())) if self._path.exists() else []

    def write(self, runs: Sequence[Run]) -> None:
        """Replace file and table."""
        self._path.write_text(json.dumps(runs, indent=1) + "\n")
        text = self._doc.read_text(encoding="utf-8")
        begin, end = f"<!-- {self._name} -->\n", f"<!-- end of {self._name} -->\n"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{self._doc} has no place for the table {self._name!r}")
        self._doc.write_text(before + begin + self.table() + end + after, encoding="utf-8")

    def is_written(self) -> bool:
        """Whether the docs say what is on record."""
        return self.table() in self._doc.read_text(encoding="utf-8")

    def table(self) -> str:
        """In Markdown."""
        rows = [list(self._columns), ["---"] * len(self._columns)]
        rows += [[str(cell(run)) for cell in self._columns.values()] for run in self.runs()]
        return "".join(f"| {' | '.join(row)} |\n" for row in rows)
