"""The table of docs/faults-table.md, from JSON."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from typing import Any

import broker_fl
from tests.faults import cells
from tests.faults.cells import Outcome

_FACTS = ("date", "seconds", "machine", "software")
_HEAD = """\
# Real faults, by phase of a round

Written by `python -m tests.faults --write docs/faults-table.md`; not by hand. What rows and columns mean is
in [faults.md](faults.md#real-faults).

{num} cells, of which {good} are as they should be: the job is done, updates lost 0, counted twice 0, and the
final model is equal, bit for bit, to the undisturbed run's. {date}, {seconds} s on {machine}; {software}.
{later}
In each cell: seconds from the end of the fault to the version of the disturbed round (of standbys: from its
beginning); in brackets, how many trainings were done again.
"""


def result(outcomes: Sequence[Outcome], began: float) -> dict[str, Any]:
    """What is kept of a run."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime(began)),
        "seconds": round(time.time() - began),
        "machine": f"{os.cpu_count()} processors, {platform.system()} {platform.machine()}",
        "software": f"broker_fl {broker_fl.__version__}, Python {platform.python_version()}",
        "cells": [outcome.as_json() for outcome in outcomes],
    }


def added(
    before: dict[str, Any], result: dict[str, Any], order: Sequence[tuple[str, str, str]]
) -> dict[str, Any]:
    """A table with the cells of a later run besides, or in the place of its own."""
    found = {_name(cell): cell for cell in (*before["cells"], *result["cells"])}
    later = {"rows": sorted({f"{cell['target']} ({cell['fault']})" for cell in result["cells"]}), **result}
    del later["cells"]
    cells_in_order = [found[name] for name in order if name in found]
    return {**before, "later": [*before.get("later", []), later], "cells": cells_in_order}


def _name(cell: dict[str, Any]) -> tuple[str, str, str]:
    return cell["target"], cell["fault"], cell["phase"]


def _later(result: dict[str, Any]) -> str:
    """What is said of runs that were added."""
    words = "Run later: {rows}; {date}, {seconds} s, {software}.\n"
    runs = result.get("later", [])
    return "".join(words.format(**{**run, "rows": ", ".join(run["rows"])}) for run in runs)


def markdown(result: dict[str, Any]) -> str:
    """The page."""
    found = [Outcome(**cell) for cell in result["cells"]]
    good = sum(one.is_good for one in found)
    head = _HEAD.format(
        num=len(found), good=good, later=_later(result), **{name: result[name] for name in _FACTS}
    )
    columns = "| | fault | " + " | ".join(cells.PHASES) + " |"
    return "\n".join([head, columns, "|---|---|" + "---|" * len(cells.PHASES), *_rows(found), ""])


def _rows(found: Sequence[Outcome]) -> list[str]:
    by_row: dict[tuple[str, str], dict[str, Outcome]] = {}
    for one in found:
        by_row.setdefault((one.target, one.fault), {})[one.phase] = one
    return [
        f"| {target} | {fault} | " + " | ".join(_cell(row.get(phase)) for phase in cells.PHASES) + " |"
        for (target, fault), row in by_row.items()
    ]


def _cell(one: Outcome | None) -> str:
    if one is None:
        return ""
    again = f" ({one.trained_again})" if one.trained_again else ""
    if one.is_good:
        return f"{one.recovery_s:.1f}{again}"
    equal = "equal" if one.equal else "differs"
    return f"**{one.state}; lost {one.lost}, twice {one.twice}, model {equal}**"
