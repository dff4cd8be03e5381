"""Weighted sums without checks, by what Python offers: each into ``result``, whose last element comes back,
divided by the sum of the weights.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numexpr
import numpy as np

from broker_fl.aggregation import kernels
from broker_fl.model import Array, Model

BLOCK = 1 << 16
"""Elements of a block of numexpr's: 256 KiB of the sum, and as much of an update."""


def flat(model: Model) -> Array:
    """All its elements: it has one run."""
    return model.run(model.spec.runs[0])


def use_all_cores() -> None:
    """By itself numexpr may use fewer."""
    numexpr.set_num_threads(os.cpu_count() or 1)


def by_sum_only(result: Model, updates: Sequence[Model], weights: Array) -> float:
    """Ours without checks."""
    total = flat(result)
    kernels.scale(flat(updates[0]), float(weights[0]), out=total)
    for update, weight in zip(updates[1:], weights[1:], strict=True):
        kernels.add_scaled(total, flat(update), float(weight))
    return float(total[-1] / weights.sum())


def by_numpy(result: Model, updates: Sequence[Model], weights: Array) -> float:
    """Tensor by tensor; one core."""
    for name, array in updates[0].items():
        np.multiply(array, weights[0], out=result[name])
    for update, weight in zip(updates[1:], weights[1:], strict=True):
        for name, array in update.items():
            total = result[name]
            total += weight * array
    return float(flat(result)[-1] / weights.sum())


def by_numexpr(result: Model, updates: Sequence[Model], weights: Array) -> float:
    """One update after the other, in place."""
    total = flat(result)
    numexpr.evaluate("w * u", {"w": weights[0], "u": flat(updates[0])}, out=total)
    for update, weight in zip(updates[1:], weights[1:], strict=True):
        names = {"total": total, "w": weight, "u": flat(update)}
        numexpr.evaluate("total + w * u", names, out=total)
    return float(total[-1] / weights.sum())


def by_numexpr_blocks(result: Model, updates: Sequence[Model], weights: Array) -> float:
    """All updates in each block, which stays in the cache."""
    total, arrays = flat(result), [flat(update) for update in updates]
    types = [(name, float) for name in ("total", "w", "u")]  # that is float32 in numexpr
    add = numexpr.NumExpr("total + w * u", types)
    for start in range(0, total.size, BLOCK):
        part = total[start : start + BLOCK]
        np.multiply(arrays[0][start : start + BLOCK], weights[0], out=part)
        for array, weight in zip(arrays[1:], weights[1:], strict=True):
            add(part, weight, array[start : start + BLOCK], out=part, ex_uses_vml=False)
    return float(total[-1] / weights.sum())


def by_numexpr_all(result: Model, updates: Sequence[Model], weights: Array) -> float:
    """One expression with a product for each update."""
    total = flat(result)
    names = {f"u{index}": flat(update) for index, update in enumerate(updates)}
    names |= {f"w{index}": weight for index, weight in enumerate(weights)}
    products = " + ".join(f"w{index} * u{index}" for index in range(len(updates)))
    numexpr.evaluate(products, names, out=total)
    return float(total[-1] / weights.sum())
