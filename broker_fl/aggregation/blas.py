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
_FEW_ELEMENTS = 1 << 12
"""Are added in a microsecond, with Python's lock kept: to have it back from a busy thread can take 5 ms."""
_TRIED = 131
"""Elements: a few of the widest registers, and a rest."""

Axpby = Callable[[float, int, int, int], None]
"""``(a, x, y, n)`` adds ``a`` times the ``n`` elements at address ``x`` to those at address ``y``."""


def add_scaled(total: Array, values: Array, weight: float) -> bool:
    """``total += weight * values``; False, with nothing done, where NumPy has to.

    Both are 1-d and equally long. BLAS takes float32 and float64, one type for both. The product is not
    rounded before it is added where the processor can do without.
    """
    if (add := adder(total, values, weight)) is None:
        return False
    in_parts(total.size, add)
    return True


def adder(total: Array, values: Array, weight: float) -> Callable[[slice], None] | None:
    """Adds ``weight * values`` to ``total`` within a slice; None where NumPy has to.

    However a sum is cut into slices, it is the same to the last bit.
    """
    axpby = _functions().get(total.dtype.name)
    if axpby is None or values.dtype != total.dtype:
        return None
    if not (total.flags.carray and values.flags.c_contiguous and values.flags.aligned):
        return None
    x, y, size = values.ctypes.data, total.ctypes.data, total.itemsize

    def add(part: slice) -> None:
        for start in range(part.start, part.stop, _MAX_ELEMENTS):
            count = min(_MAX_ELEMENTS, part.stop - start)
            axpby(weight, x + start * size, y + start * size, count)

    return add


@cache
def _functions() -> Mapping[str, Axpby]:
    """By the name of the type; those that were found and do add."""
    with suppress(ImportError, OSError, AttributeError):
        path = import_module("numpy.linalg._umath_linalg").__file__
        found = {kind: _function(path, *letter_and_type) for kind, letter_and_type in _KINDS.items()}
        return {kind: axpby for kind, axpby in found.items() if axpby is not None and _adds(axpby, kind)}
    return {}


def _function(path: str | None, letter: str, real: type[Any]) -> Axpby | None:
    letting_go, keeping = ctypes.CDLL(path), ctypes.PyDLL(path)
    for template, integer in _NAMES:
        name = template.format(letter)
        if getattr(letting_go, name, None) is not None:
            types = (integer, real, ctypes.c_void_p, integer, real, ctypes.c_void_p, integer)
            return _choosing(getattr(letting_go, name), getattr(keeping, name), types)
    return None


def _choosing(many: Any, few: Any, types: tuple[type[Any], ...]) -> Axpby:
    for function in (many, few):
        function.argtypes, function.restype = types, None

    def axpby(a: float, x: int, y: int, count: int) -> None:
        (many if count > _FEW_ELEMENTS else few)(count, a, x, 1, 1.0, y, 1)

    return axpby


def _adds(axpby: Axpby, kind: str) -> bool:
    """Whether it is the function that its name says, and adds each element alike wherever it lies: a sum
    that is cut elsewhere is then the same to the last bit.
    """
    x = np.arange(_TRIED, dtype=kind) / 7 + 1
    y = np.arange(_TRIED, dtype=kind) / 3
    whole = y.copy()
    axpby(0.3, x.ctypes.data, whole.ctypes.data, _TRIED)
    if not np.allclose(whole, y + 0.3 * x, rtol=1e-6, atol=0.0):
        return False
    for cut in range(_TRIED):
        pieces = y.copy()
        axpby(0.3, x[:cut].ctypes.data, pieces[:cut].ctypes.data, cut)
        if not (np.array_equal(pieces[:cut], whole[:cut]) and np.array_equal(pieces[cut:], y[cut:])):
            return False
        axpby(0.3, x[cut:].ctypes.data, pieces[cut:].ctypes.data, _TRIED - cut)
        if not np.array_equal(pieces, whole):
            return False
    return True
