"""``y += a x`` by the BLAS that NumPy brings with it, which NumPy itself has no call for.

NumPy needs two operations and a block in the cache for what one pass of ``?axpby`` does in one call for each
core: between many short calls the threads of a process wait for Python's lock, and for one another when the
cores are busy. It is not ``?axpy``, which OpenBLAS shares out to threads of its own: they go on spinning for
some 20 ms after each call, and take the cores from all others. ``?axpby``, ``y = a x + b y``, is OpenBLAS's
extension (also MKL's) and stays on the caller's thread.

The library is the one behind ``numpy.linalg``, under the names that its C interface has in NumPy's wheels
(OpenBLAS with 64-bit integers), or elsewhere. Where there is none of them, or it does not add as it should,
NumPy does the work (``kernels.py``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from broker_fl.aggregation.parallel import in_parts
from broker_fl.model import Array

_NAMES = (
    ("scipy_cblas_{}axpby64_", ctypes.c_int64),
    ("cblas_{}axpby64_", ctypes.c_int64),
    ("cblas_{}axpby", ctypes.c_int),
)
"""Of the function, and the type of its integers."""
_KINDS = {"float32": ("s", ctypes.c_float), "float64": ("d", ctypes.c_double)}
_MAX_ELEMENTS = 1 << 30
"""In one call: sizes fit into 32 bits."""

Axpby = Callable[[float, int, int, int], None]
"""``(a, x, y, n)`` adds ``a`` times the ``n`` elements at address ``x`` to those at address ``y``."""


def add_scaled(total: Array, values: Array, weight: float) -> bool:
    """``total += weight * values``; False, with nothing done, where NumPy has to.

    Both are 1-d and equally long. BLAS takes float32 and float64, one type for both. The product is not
    rounded before it is added where the processor can do without.
    """
    axpby = _functions().get(total.dtype.name)
    if axpby is None or values.dtype != total.dtype:
        return False
    if not (total.flags.carray and values.flags.c_contiguous and values.flags.aligned):
        return False
    x, y, size = values.ctypes.data, total.ctypes.data, total.itemsize

    def add(part: slice) -> None:
        for start in range(part.start, part.stop, _MAX_ELEMENTS):
            count = min(_MAX_ELEMENTS, part.stop - start)
            axpby(weight, x + start * size, y + start * size, count)

    in_parts(total.size, add)
    return True


@cache
def _functions() -> Mapping[str, Axpby]:
    """By the name of the type; those that were found and do add."""
    with suppress(ImportError, OSError, AttributeError):
        library = ctypes.CDLL(import_module("numpy.linalg._umath_linalg").__file__)
        found = {kind: _function(library, *letter_and_type) for kind, letter_and_type in _KINDS.items()}
        return {kind: axpby for kind, axpby in found.items() if axpby is not None and _adds(axpby, kind)}
    return {}


def _function(library: ctypes.CDLL, letter: str, real: type[Any]) -> Axpby | None:
    for name, integer in _NAMES:
        if (function := getattr(library, name.format(letter), None)) is None:
            continue
        function.argtypes = (integer, real, ctypes.c_void_p, integer, real, ctypes.c_void_p, integer)
        function.restype = None
        return lambda a, x, y, count, call=function: call(count, a, x, 1, 1.0, y, 1)  # type: ignore[misc]
    return None


def _adds(axpby: Axpby, kind: str) -> bool:
    """Whether it is the function that its name says."""
    x, y = np.arange(9, dtype=kind), np.full(9, 0.5, kind)
    axpby(2.0, x.ctypes.data, y[:7].ctypes.data, 7)
    return bool((y == np.where(x < 7, 0.5 + 2.0 * x, 0.5)).all())
