"""What all splits have in common: checks, sizes, and from "who owns an example" to "what a part has"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from broker_fl.errors import SettingError

Indices = npt.NDArray[np.int64]


def one_dimensional(values: Sequence[Any] | npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """``values`` as an array.

    Raises:
        SettingError: it has more than one dimension, or none.
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise SettingError(f"{name} must be one-dimensional, not of shape {array.shape}")
    return array


def check(num_examples: int, num_parts: int, min_examples: int) -> None:
    """Hold the arguments of a split against each other.

    Raises:
        SettingError: one is out of range, or there are not ``num_parts * min_examples`` examples.
    """
    if num_parts < 1:
        raise SettingError(f"num_parts must be at least 1, not {num_parts}")
    if min_examples < 0:
        raise SettingError(f"min_examples must be at least 0, not {min_examples}")
    if num_parts * min_examples > num_examples:
        raise SettingError(
            f"{num_examples} examples are too few for {num_parts} parts of at least {min_examples}: "
            f"ask for fewer parts or a smaller min_examples"
        )


def check_above_0(value: float, name: str) -> None:
    """Refuse what is no finite number above 0.

    Raises:
        SettingError: it is not.
    """
    if not (math.isfinite(value) and value > 0):
        raise SettingError(f"{name} must be a number above 0, not {value}")


def parts_of(owner: Indices, num_parts: int) -> list[Indices]:
    """What each part has, from who owns each example."""
    sizes = np.bincount(owner, minlength=num_parts)
    return np.split(np.argsort(owner, kind="stable"), np.cumsum(sizes)[:-1])


def deal(sizes: Indices, rng: np.random.Generator) -> list[Indices]:
    """Parts of these sizes, their examples chosen at random."""
    return parts_of(rng.permutation(np.repeat(np.arange(len(sizes)), sizes)), len(sizes))
