"""Our own rounds, cell by cell, and transport by transport."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import machine, ours
from benchmarks.comparison import why_left_out
from benchmarks.questions import Cell, Options, Row

Measure = Callable[[str, Cell], dict[str, Any]]
"""Of a transport and a cell: what was measured."""


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
        row = named(cell)
        reason = why_left_out(needed_bytes(*cell), "ours")
        yield {**row, **({"left_out": reason} if reason else measure(cell))}


def by_transport(options: Options, cells: tuple[Cell, ...], quick: Cell, measure: Measure) -> Iterator[Row]:
    """The same with a row for each transport."""
    for cell in options.cells_of(cells, quick):
        for transport in options.transports:
            if options.is_over:
                return
            row = named(cell)
            row |= {"key": f"{transport}-{row['key']}", "transport": transport}
            reason = why_left_out(ours.needed_bytes(*cell), "ours")
            yield {**row, **({"left_out": reason} if reason else measure(transport, cell))}


def named(cell: Cell) -> Row:
    """What every row of a cell says, with the time and how busy others are."""
    learners, parameters = cell
    return {
        "key": f"{learners}x{parameters}",
        "num_learners": learners,
        "num_parameters": parameters,
        **now(),
    }


def now() -> Row:
    """When a row is measured, and how busy others are then."""
    return {"when": time.strftime("%Y-%m-%d %H:%M"), "busy_share": machine.busy_share()}
