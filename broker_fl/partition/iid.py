"""Split evenly at random: independent and identically distributed parts (McMahan et al. 2017, section 3).

H. B. McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017:
"IID, where the data is shuffled, and then partitioned into 100 clients each receiving 600 examples."
"""

from __future__ import annotations

import numpy as np

from broker_fl.partition.parts import Indices, check, deal


def iid(num_examples: int, num_parts: int, *, seed: int = 0) -> list[Indices]:
    """Shuffle, and cut into parts whose sizes differ by 1 at most (McMahan et al. 2017, section 3).

    Args:
        num_examples: how many there are to be split.
        num_parts: how many learners there are.
        seed: the same arguments give the same parts.

    Returns:
        For each part the positions of its examples, ascending.

    Raises:
        SettingError: there are fewer examples than parts.
    """
    check(num_examples, num_parts, min_examples=1)
    rest = np.arange(num_parts) < num_examples % num_parts
    return deal(num_examples // num_parts + rest.astype(np.int64), np.random.default_rng(seed))
