"""Sums and checks of flat arrays on all cores.

A plain weighted sum is BLAS's (``blas.py``), one pass, one call for each core: here it took half the time of
NumPy's two operations block by block (``parallel.py``) and a third of numexpr's ``total + values * factor``
(``python -m benchmarks aggregation``). Longer expressions are numexpr's (``fused.py``).
"""

from __future__ import annotations

import math

import numpy as np

from broker_fl.aggregation import blas
from broker_fl.aggregation.parallel import in_blocks, in_parts, scratch
from broker_fl.model import Array

SMALL_ELEMENTS = 32_768
"""Below this many elements what numexpr takes per call (about 20 µs) is more than NumPy's whole work."""


def add_scaled(total: Array, values: Array, weight: float) -> None:
    """``total += weight * values``, in the type of ``total`` (float32 or float64); both 1-d, equally long."""
    if blas.add_scaled(total, values, weight):
        return
    factor = total.dtype.type(weight)

    def add(block: slice) -> None:
        part = total[block]
        product = scratch(part.size, total.dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # the mean is looked at before it is used
            np.multiply(values[block].astype(total.dtype, copy=False), factor, out=product)
            np.add(part, product, out=part)

    in_blocks(total.size, add)


def scale(values: Array, weight: float, out: Array) -> None:
    """``out = weight * values``, in the type of ``out``: the first of a sum."""
    factor = out.dtype.type(weight)

    def product(part: slice) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(values[part], factor, out=out[part], dtype=out.dtype, casting="unsafe")

    in_parts(out.size, product)


def divide(total: Array, divisor: float, out: Array | None = None) -> None:
    """``total / divisor`` in place, or into ``out``: closer than times its inverse, and a tie stays one."""
    by, target = total.dtype.type(divisor), total if out is None else out

    def quotient(part: slice) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            np.divide(total[part], by, out=target[part])

    in_parts(total.size, quotient)


def magnitude(values: Array) -> float:
    """A bound of the absolute values: their Euclidean norm, or the largest where the norm overflows.

    It is NaN or infinite just where a value is. A dot product reads the array once and writes nothing; only
    when it overflows are the elements looked at one by one.
    """
    if values.dtype in (np.float32, np.float64):
        norm = math.sqrt(abs(_squares(values)))
        if math.isfinite(norm):
            return norm
    return largest(values)


def _squares(values: Array) -> float:
    """The sum of the squares; that of BLAS stays on one core."""
    sums: list[float] = []

    def dot(part: slice) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            sums.append(float(np.dot(values[part], values[part])))

    in_parts(values.size, dot)
    return sum(sums)


def largest(values: Array) -> float:
    """The largest absolute value; NaN where one is NaN, 0 of none."""
    if not values.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        return float(np.maximum(float(values.max()), -float(values.min())))


def all_finite(values: Array) -> bool:
    """Whether no element is NaN or infinite."""
    return values.dtype.kind in "iub" or math.isfinite(magnitude(values))
