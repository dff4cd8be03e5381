"""The examples' data: scikit-learn's 1,797 handwritten digits (8 × 8 pixels), split over the learners."""

from __future__ import annotations

import re
import zlib
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from broker_fl.interfaces import LearnerContext
from broker_fl.partition import dirichlet

SITES = 10
"""Parts that the training data is cut into when a learner is the only one in its process."""


class Examples(NamedTuple):
    """Images (float32, n × 64, 0 to 1) and the digits they show (int64, n)."""

    images: npt.NDArray[np.float32]
    digits: npt.NDArray[np.int64]


@cache
def load() -> tuple[Examples, Examples]:
    """Training examples, and the fifth of all that is held out: no learner sees it."""
    bunch = load_digits()
    images, digits = (bunch.data / 16).astype(np.float32), bunch.target.astype(np.int64)
    parts = train_test_split(images, digits, test_size=0.2, stratify=digits, random_state=0)
    return Examples(parts[0], parts[2]), Examples(parts[1], parts[3])


def part(index: int, count: int) -> Examples:
    """One of ``count`` uneven parts of the training data, each of which has few examples of some digits."""
    train, _ = load()
    chosen = dirichlet(train.digits, count, alpha=0.3, seed=0, min_examples=10)[index]
    return Examples(train.images[chosen], train.digits[chosen])


def part_of(context: LearnerContext) -> Examples:
    """What this learner owns; a real site would read its own files here."""
    if context.count > 1:
        return part(context.index, context.count)
    number = re.search(r"\d+$", context.learner)  # site-3 owns part 3; a name without a number is hashed
    return part((int(number[0]) if number else zlib.crc32(context.learner.encode())) % SITES, SITES)
