"""Split by a natural key: an owner of data is a writer, a hospital, a device (Caldas et al. 2018).

S. Caldas et al., LEAF: A Benchmark for Federated Settings, 2018: "Federated EMNIST, which is built by
partitioning the data in Extended MNIST based on the writer of the digit/character."
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from broker_fl.errors import SettingError
from broker_fl.partition.parts import Indices, check, one_dimensional, parts_of


def by_key(
    keys: Sequence[Any] | npt.NDArray[Any], num_parts: int | None = None, *, seed: int = 0
) -> list[Indices]:
    """A part for each key, in the order of the sorted keys (Caldas et al. 2018); or keys dealt to parts.

    Args:
        keys: whose each example is, one-dimensional: names or numbers.
        num_parts: how many learners there are, each of whom gets the same number of keys (one more or less)
            with all their examples; which ones is random. None: as many as there are keys.
        seed: of that; without ``num_parts`` nothing is random.

    Returns:
        For each part the positions of its examples in ``keys``, ascending.

    Raises:
        SettingError: there are no examples, or fewer keys than parts.
    """
    owners = one_dimensional(keys, "keys")
    if not len(owners):
        raise SettingError("keys is empty: there are no examples to split")
    distinct, owner = np.unique(owners, return_inverse=True)
    if num_parts is None:
        return parts_of(owner.astype(np.int64), len(distinct))
    check(len(owners), num_parts, min_examples=1)
    if num_parts > len(distinct):
        raise SettingError(
            f"{len(distinct)} keys are too few for {num_parts} parts, each of which has at least one: "
            f"ask for fewer parts"
        )
    part_of_key = np.random.default_rng(seed).permutation(len(distinct)) % num_parts
    return parts_of(part_of_key[owner].astype(np.int64), num_parts)
