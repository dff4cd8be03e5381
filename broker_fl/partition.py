"""Split one data set over many learners, as the literature simulates owners of data; seeded, repeatable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from broker_fl.errors import SettingError

Indices = npt.NDArray[np.int64]


def dirichlet(
    labels: Sequence[Any] | npt.NDArray[Any],
    num_parts: int,
    *,
    alpha: float,
    seed: int = 0,
    min_examples: int = 1,
) -> list[Indices]:
    """Split with label skew: each class is dealt out in shares drawn from Dir(alpha) (Yurochkin et al. 2019).

    Every example is in exactly one part. A small ``alpha`` gives each part few classes and uneven sizes; a
    large one comes close to an even split. Parts that the draw leaves too small are filled up with examples
    chosen at random from those that others can spare.

    Args:
        labels: the class of each example, one-dimensional.
        num_parts: how many learners there are.
        alpha: above 0; 0.1 is strongly skewed, 100 nearly even.
        seed: the same arguments give the same parts.
        min_examples: what each part has at least.

    Returns:
        For each part the positions of its examples in ``labels``, ascending.

    Raises:
        SettingError: an argument is out of range, or there are not ``num_parts * min_examples`` examples.
    """
    classes = np.asarray(labels)
    _check(classes, num_parts, alpha, min_examples)
    rng = np.random.default_rng(seed)
    owner = np.empty(len(classes), np.int64)
    for label in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == label))
        cuts = np.cumsum(rng.dirichlet(np.full(num_parts, alpha)))[:-1] * len(members)
        owner[members] = np.searchsorted(cuts, np.arange(len(members)), side="right")
    _fill_up(owner, num_parts, min_examples, rng)
    sizes = np.bincount(owner, minlength=num_parts)
    return np.split(np.argsort(owner, kind="stable"), np.cumsum(sizes)[:-1])


def _check(classes: npt.NDArray[Any], num_parts: int, alpha: float, min_examples: int) -> None:
    if classes.ndim != 1:
        raise SettingError(f"labels must be one-dimensional, not of shape {classes.shape}")
    if num_parts < 1:
        raise SettingError(f"num_parts must be at least 1, not {num_parts}")
    if not (math.isfinite(alpha) and alpha > 0):
        raise SettingError(f"alpha must be a number above 0, not {alpha}")
    if min_examples < 0:
        raise SettingError(f"min_examples must be at least 0, not {min_examples}")
    if num_parts * min_examples > len(classes):
        raise SettingError(
            f"{len(classes)} examples are too few for {num_parts} parts of at least {min_examples}: "
            f"ask for fewer parts or a smaller min_examples"
        )


def _fill_up(owner: Indices, num_parts: int, min_examples: int, rng: np.random.Generator) -> None:
    """Move examples in ``owner`` from parts that have more than the minimum to those that have less.

    Drawing again until all parts are large enough, as is often done, may take for ever.
    """
    sizes = np.bincount(owner, minlength=num_parts)
    lacking = np.maximum(min_examples - sizes, 0)
    shuffled = rng.permutation(len(owner))
    by_part = shuffled[np.argsort(owner[shuffled], kind="stable")]
    rank = np.arange(len(owner)) - (np.cumsum(sizes) - sizes)[owner[by_part]]
    spare = by_part[rank >= min_examples]
    owner[rng.choice(spare, lacking.sum(), replace=False)] = np.repeat(np.arange(num_parts), lacking)
