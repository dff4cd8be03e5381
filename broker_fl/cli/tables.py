"""Tables for people; on a pipe a name is never cut or broken, and long words go on below."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

_PIPE_COLUMNS = 400
_PIPE_CELL = 64
"""On a pipe the most of a column: what an id may be long."""


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Sequence[str] = (),
    last_below: bool = False,
) -> None:
    """Print rows under column heads; columns named in ``numbers`` are set flush right.

    With ``last_below`` the last column has sentences. On a terminal that has no room for a column of them
    they are below the table, whole, each after its row's first cell.
    """
    is_pipe, rows = not sys.stdout.isatty(), list(rows)
    console = Console(width=_PIPE_COLUMNS if is_pipe else None, highlight=False, markup=False)
    table = _table(columns, rows, numbers, max_width=_PIPE_CELL if is_pipe else None)
    if not last_below or is_pipe or _fits(table, console):
        console.print(table)
        return
    console.print(_table(columns[:-1], [row[:-1] for row in rows], numbers))
    for first, sentence in ((row[0], row[-1]) for row in rows if row[-1]):
        console.print(f"{first}: {sentence}")


def _fits(table: Table, console: Console) -> bool:
    """Whether no cell has to go on in a second line."""
    unbounded = console.options.update(max_width=100_000)
    return console.measure(table, options=unbounded).maximum <= console.width


def _table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Sequence[str],
    max_width: int | None = None,
) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        justify: Literal["right", "left"] = "right" if column in numbers else "left"
        table.add_column(column, justify=justify, overflow="fold", max_width=max_width)
    for row in rows:
        table.add_row(*row)
    return table


def when(time_s: float) -> str:
    """A moment in UTC, which says that it is: sites and their logs are in many zones."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(time_s)) if time_s else "–"
