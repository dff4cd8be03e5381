"""Sums and checks of flat arrays on all cores.

A plain weighted sum is BLAS's (``blas.py``), one pass, one call for each core: out of cache it takes about
half of the time of numexpr's ``total + values * factor`` (``python -m benchmarks aggregation``). Where no
BLAS is known, it is NumPy's two operations, block by block (``parallel.py``). Longer expressions are
numexpr's (``fused.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from broker_fl.aggregation import blas
from broker_fl.aggregation.parallel import BLOCK_ELEMENTS, FOLD_ELEMENTS, in_blocks, in_parts, scratch
from broker_fl.model import Array

Work = Callable[[slice], None]
"""On the elements of a slice."""
Term = tuple[Array, float]
"""Of a sum: ``x`` and ``w`` of ``w x``."""
SMALL_ELEMENTS = 32_768
"""Below this many elements what numexpr takes per call (about 20 µs) is more than NumPy's whole work."""


def fold(total: Array, terms: Sequence[Term], *, begun: bool, divisor: float | None = None) -> None:
    """``total += w x`` for each of the terms, in their order, and then ``total / divisor``; where the sum has
    not ``begun``, ``total`` is undefined before.

    Block by block: a block of the sum stays in the cache while all terms are added to it, so that the sum is
    read and written once. The result is the same to the last bit as of one term after the other.
    """
    if not terms and divisor is not None:
        divide(total, divisor)
        return
    if len(terms) == 1 and divisor is None:  # nothing would be found in the cache
        (add_scaled if begun else _scale_into)(total, *terms[0])
        return
    steps = [_adder(total, *term) for term in (terms if begun else terms[1:])]
    if not begun:
        steps.insert(0, _scaler(total, *terms[0]))
    if divisor is not None:
        steps.append(_divider(total, divisor, total))

    def work(block: slice) -> None:
        for step in steps:
            step(block)

    needs_scratch = any(values.dtype != total.dtype for values, _ in terms)
    in_blocks(total.size, work, BLOCK_ELEMENTS if needs_scratch else FOLD_ELEMENTS)


def add_scaled(total: Array, values: Array, weight: float) -> None:
    """``total += weight * values``, in the type of ``total`` (float32 or float64); both 1-d, equally long."""
    if not blas.add_scaled(total, values, weight):
        in_blocks(total.size, _adder(total, values, weight))


def _adder(total: Array, values: Array, weight: float) -> Work:
    """Adds ``weight * values`` to ``total``, within a block."""
    if (found := blas.adder(total, values, weight)) is not None:
        return found
    factor = total.dtype.type(weight)

    def add(block: slice) -> None:
        part = total[block]
        product = scratch(part.size, total.dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # the mean is looked at before it is used
            np.multiply(values[block].astype(total.dtype, copy=False), factor, out=product)
            np.add(part, product, out=part)

    return add


def scale(values: Array, weight: float, out: Array) -> None:
    """``out = weight * values``, in the type of ``out``: the first of a sum."""
    in_parts(out.size, _scaler(out, values, weight))


def _scale_into(total: Array, values: Array, weight: float) -> None:
    scale(values, weight, out=total)


def _scaler(out: Array, values: Array, weight: float) -> Work:
    factor = out.dtype.type(weight)

    def product(part: slice) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(values[part], factor, out=out[part], dtype=out.dtype, casting="unsafe")

    return product


def divide(total: Array, divisor: float, out: Array | None = None) -> None:
    """``total / divisor`` in place, or into ``out``: closer than times its inverse, and a tie stays one."""
    in_parts(total.size, _divider(total, divisor, total if out is None else out))


def _divider(total: Array, divisor: float, out: Array) -> Work:
    by = total.dtype.type(divisor)

    def quotient(part: slice) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            np.divide(total[part], by, out=out[part])

    return quotient


FEW_ELEMENTS = 500
"""NumPy's simple operations keep Python's lock for so few, its dot product never does: to have the lock back
from a busy thread can take 5 ms.
"""


def magnitude(values: Array) -> float:
    """A bound of the absolute values: their Euclidean norm, or the largest where the norm overflows.

    It is NaN or infinite just where a value is. A dot product reads the array once and writes nothing; only
    when it overflows are the elements looked at one by one.
    """
    if values.dtype in (np.float32, np.float64):
        norm = math.sqrt(abs(squares(values)))
        if math.isfinite(norm):
            return norm
    return largest(values)


def squares(values: Array) -> float:
    """The sum of the squares of float32 or float64, which may overflow; that of BLAS stays on one core."""
    if values.size <= FEW_ELEMENTS:
        with np.errstate(over="ignore", invalid="ignore"):
            return float(np.add.reduce(values * values))
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
