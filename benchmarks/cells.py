"""Our own rounds, cell by cell and transport by transport."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import machine, ours
from benchmarks.comparison import why_left_out
from benchmarks.questions import Cell, Options, Row

Measure = Callable[[str, Cell], dict[str, Any]]
"""Of a transport and a cell: what was measured."""


def by_transport(options: Options, cells: tuple[Cell, ...], quick: Cell, measure: Measure) -> Iterator[Row]:
    """A row for each, until the time is over; what does not fit in memory says so."""
    for cell in options.cells_of(cells, quick):
        for transport in options.transports:
            if options.is_over:
                return
            learners, parameters = cell
            row: Row = {
                "key": f"{transport}-{learners}x{parameters}",
                "transport": transport,
                "num_learners": learners,
                "num_parameters": parameters,
                "when": time.strftime("%Y-%m-%d %H:%M"),
                "busy_share": machine.busy_share(),
            }
            if reason := why_left_out(ours.needed_bytes(*cell), "ours"):
                yield {**row, "left_out": reason}
            else:
                yield {**row, **measure(transport, cell)}
