"""Split with label skew: each class is dealt out in shares from a Dirichlet distribution.

M. Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks, ICML 2019, section 4: for
each class k, shares p_k ~ Dir_J(alpha) of its examples go to the J learners.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from broker_fl.partition.parts import Indices, check, check_above_0, one_dimensional, parts_of


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
    classes = one_dimensional(labels, "labels")
    check_above_0(alpha, "alpha")
    check(len(classes), num_parts, min_examples)
    rng = np.random.default_rng(seed)
    owner = np.empty(len(classes), np.int64)
    for label in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == label))
        cuts = np.cumsum(rng.dirichlet(np.full(num_parts, alpha)))[:-1] * len(members)
        owner[members] = np.searchsorted(cuts, np.arange(len(members)), side="right")
    _fill_up(owner, num_parts, min_examples, rng)
    return parts_of(owner, num_parts)


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
