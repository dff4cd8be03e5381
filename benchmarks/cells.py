"""Our own rounds, cell by cell, and transport by transport."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks import machine, ours
from benchmarks.comparison import why_left_out
from benchmarks.questions import Cell, Options, Row
from benchmarks.tables import cell_name

Measure = Callable[[str, Cell], dict[str, Any]]
"""Of a transport and a cell: what was measured."""
LONGEST_ERROR = 1500
"""Characters of its end that are kept."""


def cell_by_cell(
    options: Options,
    cells: tuple[Cell, ...],
    quick: Cell,
    measure: Callable[[Cell], dict[str, Any]],
    needed_bytes: Callable[[int, int], int] = ours.needed_bytes,
) -> Iterator[Row]:
    """A row for each, until the time is over; what does not fit in memory says so."""
    for cell in options.cells_of(cells, quick):
        if options.is_over:
            return
        yield named(cell) | if_it_fits(needed_bytes(*cell), measure, cell)


def by_transport(options: Options, cells: tuple[Cell, ...], quick: Cell, measure: Measure) -> Iterator[Row]:
    """The same with a row for each transport."""
    for cell in options.cells_of(cells, quick):
        for transport in options.transports:
            if options.is_over:
                return
            yield named(cell, transport) | if_it_fits(ours.needed_bytes(*cell), measure, transport, cell)


def if_it_fits(num_bytes: int, measure: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What it measures, or how it failed, or that the machine has not the memory."""
    reason = why_left_out(num_bytes, "ours")
    return {"left_out": reason} if reason else or_failed(measure, *arguments)


def or_failed(measure: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What it measures, or how it failed: the cells after it are measured all the same; and how busy others
    were meanwhile.
    """
    others = machine.OthersShare()
    try:
        found = measure(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever it was, it stands on the page
        found = {"failed": f"{type(error).__name__}: {error}"[-LONGEST_ERROR:]}
    return {"busy_share": others.so_far(), **found}


def keys(cells: Sequence[Cell], transports: Sequence[str] = ()) -> dict[str, str]:
    """Of the rows of these cells, with their names on the page."""
    if not transports:
        return {
            f"{learners}x{parameters}": cell_name((learners, parameters)) for learners, parameters in cells
        }
    return {
        f"{transport}-{key}": f"{transport} {name}"
        for key, name in keys(cells).items()
        for transport in transports
    }


def named(cell: Cell, transport: str = "") -> Row:
    """What every row of a cell says, with the time; and where each has several transports, which it is."""
    learners, parameters = cell
    return {
        "key": f"{transport}-{learners}x{parameters}" if transport else f"{learners}x{parameters}",
        **({"transport": transport} if transport else {}),
        "num_learners": learners,
        "num_parameters": parameters,
        **now(),
    }


def now() -> Row:
    """When a row is measured."""
    return {"when": time.strftime("%Y-%m-%d %H:%M")}
