"""Values that are looked at as they arrive, piece by piece, while the piece is in the cache.

To look whether all values of an update are finite, before any of them is in the sum, takes a pass over it.
Right after a piece was received it need not be read from memory for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from broker_fl.aggregation import kernels
from broker_fl.model import DTYPES, Array, ModelSpec, Run

MAX_RUNS = 32
"""Of a model; the runs of others, many and short, are looked at when the update is whole."""


class Look:
    """The magnitudes (``kernels.magnitude``) of a model's runs, as its buffer fills up."""

    def __init__(self, spec: ModelSpec) -> None:
        self._runs = spec.runs
        self._found = [0.0] * len(spec.runs)
        """Of float32 and float64 the sum of squares, of all else the largest absolute value."""
        self._is_clear = len(spec.runs) <= MAX_RUNS

    def at(self, buffer: Array, start: int, stop: int) -> None:
        """Look at bytes ``[start, stop)`` of the model's buffer; at each byte once."""
        for place, piece in self._pieces(buffer, start, stop) if self._is_clear else ():
            if piece.dtype in (np.float32, np.float64):
                found = self._found[place] + kernels.squares(piece)
            else:
                found = np.maximum(self._found[place], kernels.largest(piece))
            self._found[place] = float(found)
            self._is_clear = self._is_clear and math.isfinite(found)

    def _pieces(self, buffer: Array, start: int, stop: int) -> Iterator[tuple[int, Array]]:
        for place, run in enumerate(self._runs):
            first, last = max(start, run.start), min(stop, run.stop)
            if first < last:
                if not _is_whole(run, first, last):  # an element is cut in two
                    self._is_clear = False
                    return
                yield place, buffer[first:last].view(DTYPES[run.dtype])

    def magnitudes(self) -> list[float] | None:
        """Of each run, once all was looked at; None where it has to be looked at again, and as a whole."""
        if not self._is_clear:
            return None
        return [
            math.sqrt(found) if run.dtype in ("float32", "float64") else found
            for run, found in zip(self._runs, self._found, strict=True)
        ]


def _is_whole(run: Run, first: int, last: int) -> bool:
    size = DTYPES[run.dtype].itemsize
    return (first - run.start) % size == 0 and (last - run.start) % size == 0
