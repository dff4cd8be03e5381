"""Split with label skew: each part has a few shards of the examples sorted by label (McMahan et al. 2017).

H. B. McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017,
section 3: "we first sort the data by digit label, divide it into 200 shards of size 300, and assign each of
100 clients 2 shards."
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from broker_fl.errors import SettingError
from broker_fl.partition.parts import Indices, check, one_dimensional, parts_of


def shards(
    labels: Sequence[Any] | npt.NDArray[Any], num_parts: int, *, shards_per_part: int = 2, seed: int = 0
) -> list[Indices]:
    """Sort by label, cut into shards, and give each part the same number of them (McMahan et al. 2017).

    With equally many examples of each label, a part has examples of ``shards_per_part`` labels, or a few
    more where a shard reaches from one label into the next.

    Args:
        labels: the class of each example, one-dimensional.
        num_parts: how many learners there are.
        shards_per_part: shards that each gets; their sizes differ by 1 example at most.
        seed: the same arguments give the same parts. Which examples of a label a shard has is random too.

    Returns:
        For each part the positions of its examples in ``labels``, ascending.

    Raises:
        SettingError: an argument is out of range, or there are fewer examples than shards.
    """
    classes = one_dimensional(labels, "labels")
    if shards_per_part < 1:
        raise SettingError(f"shards_per_part must be at least 1, not {shards_per_part}")
    check(len(classes), num_parts, min_examples=shards_per_part)
    rng = np.random.default_rng(seed)
    num_shards = num_parts * shards_per_part
    shuffled = rng.permutation(len(classes))
    by_label = shuffled[np.argsort(classes[shuffled], kind="stable")]
    shard = np.arange(len(classes)) * num_shards // len(classes)
    owner = np.empty(len(classes), np.int64)
    owner[by_label] = (rng.permutation(num_shards) // shards_per_part)[shard]
    return parts_of(owner, num_parts)
