"""Sorting many short columns at once by a sorting network.

Batcher's merge exchange (Knuth, The Art of Computer Programming, volume 3, section 5.2.2, algorithm M): the
comparisons are the same whatever the values are, so each is one minimum and one maximum of whole rows, which
numpy does with vector instructions. Of 15 rows of float32 that takes a quarter or less of ``numpy.sort``.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from broker_fl.model import Array


def sort_columns(rows: Array) -> None:
    """Sort each column of a 2-d array, in place; no NaN is among its values."""
    smaller = np.empty_like(rows[0])
    for i, j in exchanges(len(rows)):
        np.minimum(rows[i], rows[j], out=smaller)
        np.maximum(rows[i], rows[j], out=rows[j])
        rows[i] = smaller


@lru_cache(maxsize=64)
def exchanges(count: int) -> tuple[tuple[int, int], ...]:
    """Pairs ``i < j`` to put in order one after the other, after which ``count`` values are sorted."""
    pairs: list[tuple[int, int]] = []
    top = 1 << max(0, (count - 1).bit_length() - 1) if count > 1 else 0
    p = top
    while p:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(count - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    return tuple(pairs)
