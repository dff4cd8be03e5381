"""Ours and a peer's rounds in alternation, and what of it is shown."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks import machine
from benchmarks.ours import OursFailed, rounds_for
from benchmarks.peers import Peer, PeerFailed
from benchmarks.questions import Cell, Options, Row
from benchmarks.sweep import Setting, Tried, best, search
from benchmarks.tables import cell_name, seconds, spread, spread_of_times, times

MEMORY_SHARE = 0.85
"""Of what is available, that a cell may be expected to need."""
START_TIMEOUT_S = 420.0
"""For a peer to start and to end; its rounds have their own limit."""
LIMIT_S = 120.0
"""After so long no new round begins in a block; two are counted however long they take."""
PEER_SLOWEST_ROUND_S = 180.0
NOT_INSTALLED = "it is not installed, and --quick installs nothing"
OUT_OF_TIME = "the time given to the run was over"
SWEEP_ROUNDS = 2
SWEEP_LIMIT_S = 10.0
"""With rounds that take longer, one is counted."""
SWEEP_SHARE = 0.5
"""Of a cell's time, in which its settings are tried."""
LEAST_BLOCKS = 2
"""In alternation, if so many are asked for, whatever trying the settings took of a cell's time."""

Measured = dict[str, Any]


class Comparison:
    """One peer in one engine, held against ours cell by cell."""

    def __init__(
        self,
        peer: Peer,
        *,
        engine: Sequence[str],
        ours: Callable[[int, int, int], Measured],
        settings: Sequence[Setting],
        defaults: Setting | None,
        first: Setting | None = None,
    ) -> None:
        """Of ``settings`` the best is searched for, cell by cell, from the last best with models of that size
        on, or from ``first``; ``defaults`` is what the peer does by itself.
        """
        self._peer = peer
        self._engine = engine
        self._ours = ours
        self._settings = settings
        self._defaults = defaults
        self._first = first or settings[0]
        self._best: dict[int, Setting] = {}
        """By parameters."""

    def rows(
        self, cells: Sequence[Cell], options: Options, why_not: Callable[[Cell], str | None]
    ) -> Iterator[tuple[Cell, Row]]:
        """Of each cell; one that is not measured says why: the peer is not there, time is over, or the reason
        that ``why_not`` gives.
        """
        if options.quick and not self._peer.is_there:
            yield from ((cell, {"left_out": NOT_INSTALLED}) for cell in cells)
            return
        try:
            self._peer.set_up()
        except PeerFailed as error:
            failed = {"failed": str(error)}
            yield from ((cell, failed) for cell in cells)
            return
        for cell in cells:
            if options.is_over:
                yield cell, {"left_out": OUT_OF_TIME}
            elif reason := why_not(cell):
                yield cell, {"left_out": reason}
            else:
                yield cell, self.measure(cell, options, rounds_for(*cell, options.rounds))

    def measure(self, cell: Cell, options: Options, our_rounds: int) -> Row:
        """A row; where the peer fails, the row says how."""
        row: Row = {"when": time.strftime("%Y-%m-%d %H:%M"), "peer": self._peer.title}
        others = machine.OthersShare()
        try:
            found = self._measure(cell, options, our_rounds)
        except (PeerFailed, OursFailed) as error:
            found = {"failed": str(error)}
        shares = [block["busy_share"] for block in found.get("blocks", ())]
        return {**row, **found, "busy_share": max(shares or [others.so_far()])}

    def _measure(self, cell: Cell, options: Options, our_rounds: int) -> Row:
        began = time.monotonic()
        settings = chosen(self._settings, options.setting)
        row: Row = {"num_settings": len(self._settings), "sweep": [], "setting": settings[0]}
        if not options.quick:
            row["sweep"] = self._sweep(cell, settings, began + SWEEP_SHARE * options.cell_s)
            row |= self._best_of(cell, row["sweep"], settings[0])
            self._best[cell[1]] = row["setting"]
        block = partial(self._block, cell, row["setting"], options, our_rounds)
        blocks = [block()]
        repetitions = 1 if options.quick else options.repetitions
        while len(blocks) < min(repetitions, LEAST_BLOCKS) or (
            len(blocks) < repetitions and time.monotonic() < began + options.cell_s
        ):
            try:
                blocks.append(block())
            except (PeerFailed, OursFailed) as error:  # what was measured stays
                row["stopped"] = str(error)
                break
        return {**row, "blocks": blocks, "ratios": [ratio(one) for one in blocks]}

    def _best_of(self, cell: Cell, sweep: Sequence[Tried], first: Setting) -> Row:
        """The best setting; what the peer does by itself is tried as well and may be it."""
        tried, found = list(sweep), {}
        if self._defaults is not None:
            by_itself = {**(best(sweep) or first), **self._defaults}
            same = [one for one in sweep if one["setting"] == by_itself]
            alone = (same or search([by_itself], by_itself, partial(self._try, cell), 0.0))[0]
            tried.append(alone)
            found = {"defaults": alone}
        setting = best(tried)
        if setting is None:
            raise PeerFailed(tried[0]["failed"])
        return {**found, "setting": setting}

    def _block(self, cell: Cell, setting: Setting, options: Options, our_rounds: int) -> dict[str, Any]:
        """Ours, and right after it theirs."""
        others = machine.OthersShare()
        ours = self._ours(*cell, our_rounds)
        theirs = self._run(cell, setting, options.rounds)
        return {"ours": ours, "theirs": theirs, "busy_share": others.so_far()}

    def _sweep(self, cell: Cell, settings: Sequence[Setting], end_at: float) -> list[Tried]:
        first = self._best.get(cell[1], self._first)
        first = first if first in settings else settings[0]
        return search(settings, first, partial(self._try, cell), end_at)

    def _try(self, cell: Cell, setting: Setting, limit_s: float | None) -> Tried:
        """A few rounds, within so many seconds."""
        found = self._run(cell, setting, SWEEP_ROUNDS, short=True, timeout_s=limit_s)
        rounds_s = found["rounds_s"]
        return {"setting": setting, "median_s": statistics.median(rounds_s), "rounds_s": rounds_s}

    def _run(
        self,
        cell: Cell,
        setting: Setting,
        rounds: int,
        *,
        short: bool = False,
        timeout_s: float | None = None,
    ) -> Measured:
        options = [part for name, value in setting.items() for part in (f"--{name}", str(value))]
        arguments = ["--learners", str(cell[0]), "--parameters", str(cell[1]), "--rounds", str(rounds)]
        longest_s = START_TIMEOUT_S + LIMIT_S + 3 * PEER_SLOWEST_ROUND_S
        limit = ["--limit-s", str(SWEEP_LIMIT_S), "--least", "1"] if short else ["--limit-s", str(LIMIT_S)]
        return self._peer.run([*self._engine, *arguments, *limit, *options], timeout_s or longest_s)


def chosen(settings: Sequence[Setting], values: Mapping[str, str]) -> Sequence[Setting]:
    """Those with the values asked for, compared as numbers where they are; names they have not are another
    peer's.

    Raises:
        ValueError: none has them.
    """
    found = [
        one
        for one in settings
        if all(name not in one or _is_alike(one[name], value) for name, value in values.items())
    ]
    if not found:
        asked = ",".join(f"{name}={value}" for name, value in values.items() if name in settings[0])
        known = "; ".join(",".join(f"{name}={value}" for name, value in one.items()) for one in settings)
        raise ValueError(f"no setting has {asked}; there are: {known}")
    return found


def _is_alike(one: str | float, asked: str) -> bool:
    try:
        return float(one) == float(asked)
    except ValueError:
        return str(one) == asked


def was_swept(row: Row) -> str:
    """How many of the peer's settings were tried, where not all were."""
    num_tried = len(row.get("sweep", ()))
    if num_tried < 2:
        return " (not swept)"
    return f" ({num_tried} of {row['num_settings']} tried)" if num_tried < row.get("num_settings", 0) else ""


def periods_s(ours: Measured) -> list[float]:
    """Seconds a round of ours, from version to version."""
    return [float(one["period_s"]) for one in ours["rounds"]]


def ratio(block: Mapping[str, Measured]) -> float:
    """How many of our rounds go into one of theirs, by the medians of two blocks that followed each other."""
    theirs = statistics.median(block["theirs"]["rounds_s"])
    return float(theirs / statistics.median(periods_s(block["ours"])))


def why_left_out(num_bytes: int, who: str) -> str | None:
    """The reason, where the machine has not the memory for a cell."""
    available = machine.memory_bytes("MemAvailable")
    if num_bytes <= available * MEMORY_SHARE:
        return None
    return f"{who} would need about {num_bytes / 1e9:.0f} GB, and {available / 1e9:.0f} GB are available"


def is_measured(row: Row) -> bool:
    """Whether it has figures."""
    return "blocks" in row


def columns_of(row: Row) -> list[str]:
    """Blocks of a row with figures; ours, theirs and the ratio: medians of the blocks, with their spread; of
    one block the spread of its rounds, and none of the ratio.
    """
    blocks = row["blocks"]
    ours = [periods_s(one["ours"]) for one in blocks]
    theirs = [one["theirs"]["rounds_s"] for one in blocks]
    if len(blocks) == 1:
        return ["1", spread(ours[0]), spread(theirs[0]), times(row["ratios"][0])]
    medians = (spread([statistics.median(one) for one in whose]) for whose in (ours, theirs))
    return [str(len(blocks)), *medians, spread_of_times(row["ratios"])]


def ours_s(row: Row) -> float:
    """Seconds of our round."""
    return statistics.median([statistics.median(periods_s(one["ours"])) for one in row["blocks"]])


def theirs_s(row: Row) -> float:
    """Seconds of theirs."""
    medians: list[float] = [statistics.median(one["theirs"]["rounds_s"]) for one in row["blocks"]]
    return statistics.median(medians)


def wins_of_peer(rows: Sequence[Row]) -> str:
    """A sentence on the cells where the peer is faster; that there is none, if so."""
    measured = [row for row in rows if is_measured(row)]
    if not measured:
        return ""
    lost = [row for row in measured if least_ratio(row) < 1]
    if not lost:
        closest = min(measured, key=least_ratio)
        factor = times(least_ratio(closest))
        return f"No peer's round was shorter in any cell measured; closest was {_named(closest)}, {factor}."
    return "A peer's rounds were shorter in: " + ", ".join(_named(row) for row in lost) + "."


def _named(row: Row) -> str:
    return f"{row['peer']} at {cell_name((row['num_learners'], row['num_parameters']))}"


def gaps(rows: Sequence[Row]) -> str:
    """What was left out, and where a later block failed, as a list; empty if nothing."""
    lines = [f"- {_named(row)} was left out: {row['left_out']}." for row in rows if "left_out" in row]
    lines += [
        f"- {_named(row)}: {len(row['blocks'])} blocks only, the next failed: `{row['stopped'][-300:]}`"
        for row in rows
        if "stopped" in row
    ]
    return "\n".join(lines)


def against_target(row: Row, wanted: float) -> str:
    """How many times as long theirs was to take at least, and whether it does: in the blocks, and by itself
    where that was faster.
    """
    return f"{wanted:g}×, {'reached' if least_ratio(row) >= wanted else 'missed'}"


def least_ratio(row: Row) -> float:
    """How many of our rounds go into one of the peer's, in the blocks or by itself: the fewer."""
    ratios: list[float] = row["ratios"]
    return min([statistics.median(ratios), *_ratio_alone(row)])


def by_itself(row: Row) -> str:
    """Seconds a round with the peer's own settings, and how many of ours these are; or why there are none."""
    if "defaults" not in row:
        return "–"
    if "median_s" not in row["defaults"]:
        return "failed"
    return f"{seconds(row['defaults']['median_s'])} ({times(_ratio_alone(row)[0])})"


def _ratio_alone(row: Row) -> list[float]:
    """How many of our rounds go into one of theirs with the peer's own settings; empty if unknown."""
    alone_s = row.get("defaults", {}).get("median_s")
    return [] if alone_s is None else [alone_s / ours_s(row)]


def better_alone(rows: Sequence[Row]) -> str:
    """A sentence on the cells where the peer by itself was faster after all; empty if there is none."""
    found = []
    for row in filter(is_measured, rows):
        if row.get("defaults", {}).get("median_s", math.inf) < theirs_s(row):
            found += [f"{_named(row)}, {times(ratio)}" for ratio in _ratio_alone(row)]
    if not found:
        return ""
    return f"By itself it was faster than in the blocks shown, and takes then: {'; '.join(found)}."
