"""Expressions of the rules that move the given model, each in one pass over flat arrays by numexpr.

All operands have the type of the sum, float32 or float64, scalars too: one Python float among them and
numexpr computes in float64. What happens once per update has a path by numpy for small arrays; what happens
once per round does not need one.
"""

from __future__ import annotations

import numexpr
import numpy as np

from broker_fl.aggregation.kernels import SMALL_ELEMENTS
from broker_fl.model import Array

_BLOCK = 1 << 16
"""Elements whose differences fit into the cache, in float64."""


def add_scaled_change(total: Array, values: Array, base: Array, scale: float) -> None:
    """``total += scale * (values - base)``, in the type of ``total``.

    The difference first: it is exact where the two are near to one another, as they mostly are.
    """
    factor = total.dtype.type(scale)
    values, base = values.astype(total.dtype, copy=False), base.astype(total.dtype, copy=False)
    if total.size < SMALL_ELEMENTS:
        with np.errstate(over="ignore", invalid="ignore"):  # the result is looked at before it is used
            total += (values - base) * factor
    else:
        numexpr.evaluate("total + (values - base) * factor", out=total)


def squared_distance(values: Array, base: Array) -> float:
    """``|values - base|²``, in float64: squares of float32 may overflow, and sums of many lose digits."""
    total = 0.0
    for start in range(0, values.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        change = values[block].astype(np.float64) - base[block].astype(np.float64)
        with np.errstate(over="ignore"):
            total += float(np.dot(change, change))
    return total


def evaluate(expression: str, out: Array, **operands: Array | float) -> None:
    """Write an expression of arrays and scalars into ``out``, which may be one of the arrays."""
    typed = {
        name: value if isinstance(value, np.ndarray) else out.dtype.type(value)
        for name, value in operands.items()
    }
    numexpr.evaluate(expression, local_dict=typed, global_dict={}, out=out)
