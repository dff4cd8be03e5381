"""Multithreaded vector operations on flat arrays, by numexpr.

numexpr evaluates an expression block by block in cache, on all cores, without the temporaries that numpy
makes. It computes in float64 as soon as one operand is a Python float, which halves the speed for float32
data: weights are wrapped in the type of the accumulator.
"""

from __future__ import annotations

import math

import numexpr
import numpy as np

from broker_fl.model import Array

_NUMPY_ONLY = frozenset({np.dtype(np.float16), np.dtype(np.int8), np.dtype(np.int16), np.dtype(np.uint8)})
SMALL_ELEMENTS = 32_768
"""Below this many elements numexpr's fixed cost per call (about 20 µs) is more than numpy's whole work."""


def add_scaled(total: Array, values: Array, weight: float) -> None:
    """``total += weight * values``, in the type of ``total`` (float32 or float64); both 1-d, equally long."""
    factor = total.dtype.type(weight)
    if total.size < SMALL_ELEMENTS or _needs_numpy(values):
        with np.errstate(over="ignore", invalid="ignore"):  # the mean is looked at before it is used
            total += values.astype(total.dtype, copy=False) * factor
    else:
        numexpr.evaluate("total + values * factor", out=total, casting="same_kind")


def divide(total: Array, divisor: float) -> None:
    """``total /= divisor`` in place: closer than times its inverse, and a tie stays one."""
    by = total.dtype.type(divisor)
    if total.size < SMALL_ELEMENTS:
        with np.errstate(over="ignore", invalid="ignore"):
            total /= by
    else:
        numexpr.evaluate("total / by", out=total, casting="same_kind")


def magnitude(values: Array) -> float:
    """A bound of the absolute values: their Euclidean norm, or the largest where the norm overflows.

    It is NaN or infinite just where a value is. A dot product reads the array once and writes nothing; only
    when it overflows are the elements looked at one by one.
    """
    if values.dtype in (np.float32, np.float64):
        with np.errstate(over="ignore", invalid="ignore"):
            norm = math.sqrt(abs(np.dot(values, values)))
        if math.isfinite(norm):
            return norm
    return largest(values)


def largest(values: Array) -> float:
    """The largest absolute value; NaN where one is NaN, 0 of none."""
    if not values.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        return float(np.maximum(float(values.max()), -float(values.min())))


def all_finite(values: Array) -> bool:
    """Whether no element is NaN or infinite."""
    return values.dtype.kind in "iub" or math.isfinite(magnitude(values))


def _needs_numpy(values: Array) -> bool:
    return values.dtype in _NUMPY_ONLY or values.dtype.kind not in "fiu" or values.dtype.name == "bfloat16"
