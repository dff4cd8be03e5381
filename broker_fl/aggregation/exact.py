"""A weighted sum of models without rounding: what was added can be taken out again, and leaves no trace.

Each element is the unevaluated sum of a few float64, none of which reaches into the digits of the one before
(an expansion; Shewchuk 1997, "Adaptive Precision Floating-Point Arithmetic and Fast Robust Geometric
Predicates", section 2). A term is added by error-free transformations (TwoSum, Knuth): the error of each
addition goes on to the next float64, and where the last one has an error, one more is appended. So the sum
is the same to the last bit whatever came and went meanwhile, in any order.

The terms ``w x`` are exact for elements up to 32 bits and whole weights below 2^29. Those of float64, int64
and larger weights are rounded once, to float64, in the same way when they are taken out.

Memory: as many float64 for each element as the sum needs. Two hold 106 binary digits, enough for parameters
of ordinary size; seven hold whatever there is in elements up to 32 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from broker_fl.aggregation import kernels
from broker_fl.aggregation.sums import check_addable, length, write_mean
from broker_fl.errors import AggregationError, UpdateRefused
from broker_fl.model import Model, ModelSpec, Run

Float64s = npt.NDArray[np.float64]

BLOCK_ELEMENTS = 1 << 13
"""Whose parts and temporaries stay in a core's cache."""
MAX_TERM = 2.0**960
"""Of float64: with 2^63 terms as large the sum does not overflow yet."""


class ExactSum:
    """``Σ wᵢ xᵢ`` of models; the weights' sign says whether one is added or taken out."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._parts: list[list[Float64s]] = [[np.zeros(length(run))] for run in spec.runs]
        """Of each run: its expansions, the largest parts first."""

    @property
    def num_bytes(self) -> int:
        """That it takes now."""
        return sum(part.nbytes for parts in self._parts for part in parts)

    def check(self, model: Model, weight: float) -> None:
        """Whether the model can be added.

        Raises:
            UpdateRefused: another spec, a weight that is not positive and finite, a value that is not
                finite, or values with which the sum could overflow.
        """
        for run, magnitude in zip(self.spec.runs, check_addable(self.spec, model, weight), strict=True):
            if weight * magnitude > MAX_TERM:
                raise UpdateRefused(f"the update has {run.dtype} values with which the sum could overflow")

    def add(self, *terms: tuple[Model, float]) -> None:
        """Add ``w x`` for each pair of a model that passed ``check``, and its weight."""
        for run, parts in zip(self.spec.runs, self._parts, strict=True):
            values = [(model.run(run), weight) for model, weight in terms]
            for start in range(0, length(run), BLOCK_ELEMENTS):
                block = slice(start, start + BLOCK_ELEMENTS)
                for value, weight in values:
                    _add(parts, block, value[block].astype(np.float64) * weight)
                _normalise([part[block] for part in parts])
            while len(parts) > 1 and not parts[-1].any():
                parts.pop()

    def mean(self, total_weight: float) -> Model:
        """``Σ wᵢ xᵢ / total_weight``: the sum and the quotient are rounded to float64, and that to the
        element's type; integers and booleans as the head of ``sums.py`` says.

        Raises:
            AggregationError: a float tensor of the mean is not finite.
        """
        result = Model.blank(self.spec)
        for run, parts in zip(self.spec.runs, self._parts, strict=True):
            self._write_mean(run, parts[0], result, total_weight)
        return result

    def _write_mean(self, run: Run, total: Float64s, result: Model, total_weight: float) -> None:
        target = result.run(run)
        for start in range(0, target.size, BLOCK_ELEMENTS):
            block = slice(start, start + BLOCK_ELEMENTS)
            write_mean(target[block], total[block] / total_weight)
        if not kernels.all_finite(target):
            raise AggregationError(f"the mean of the updates overflows {run.dtype}")


def _add(parts: list[Float64s], block: slice, rest: Float64s) -> None:
    """Add ``rest`` to the expansions; one more part, at the end, takes what the others have no digits for."""
    for part in parts:
        part[block], rest = _two_sum(part[block], rest)
    if rest.any():
        parts.append(np.zeros_like(parts[0]))
        parts[-1][block] = rest


def _normalise(parts: list[Float64s]) -> None:
    """Have each part be the float64 nearest to the sum of itself and all that follow, but for ties.

    Passes from the smallest part up (VecSum; Ogita, Rump and Oishi 2005): each is free of error, and gathers
    the digits further to the front. For two parts one is enough; for more, one that changes nothing is last.
    """
    changed = len(parts) > 1
    while changed:
        total, changed = parts[-1], False
        for index in reversed(range(len(parts) - 1)):
            before = parts[index]
            total, rest = _two_sum(before, total)
            changed = changed or (len(parts) > 2 and not np.array_equal(total, before))
            parts[index + 1][...] = rest
            parts[index][...] = total


def _two_sum(a: Float64s, b: Float64s) -> tuple[Float64s, Float64s]:
    """``a + b`` rounded, and exactly the error of that (Knuth; Shewchuk 1997, theorem 7)."""
    total: npt.NDArray[Any] = a + b
    of_b = total - a
    of_a = total - of_b
    np.subtract(a, of_a, out=of_a)
    np.subtract(b, of_b, out=of_b)
    np.add(of_a, of_b, out=of_a)
    return total, of_a
