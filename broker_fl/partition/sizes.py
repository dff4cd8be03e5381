"""Split with quantity skew: parts are alike in what they have, and differ in how much.

T. Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020: the number of examples per device
follows a power law. Q. Li et al., Federated Learning on Non-IID Data Silos: An Experimental Study, ICDE 2022:
quantity skew, sizes are shares drawn from a Dirichlet distribution.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from broker_fl.partition.parts import Indices, check, check_above_0, deal


def power_law(
    num_examples: int, num_parts: int, *, exponent: float = 1.0, seed: int = 0, min_examples: int = 1
) -> list[Indices]:
    """The k-th largest part has a size proportional to k^-exponent (Li et al. 2020, MLSys).

    Which part is the largest is random, and so is what is in each.

    Args:
        num_examples: how many there are to be split.
        num_parts: how many learners there are.
        exponent: above 0; with 1, the largest part is twice the second and three times the third.
        seed: the same arguments give the same parts.
        min_examples: what each part has before the others are dealt out by the law.

    Returns:
        For each part the positions of its examples, ascending.

    Raises:
        SettingError: an argument is out of range, or there are not ``num_parts * min_examples`` examples.
    """
    check_above_0(exponent, "exponent")
    check(num_examples, num_parts, min_examples)
    rng = np.random.default_rng(seed)
    # k^-exponent, in logarithms: a large exponent makes the smallest shares 0, and no number overflows.
    shares = np.exp(-exponent * np.log(rng.permutation(num_parts) + 1.0))
    return deal(_sizes(shares / shares.sum(), num_examples, min_examples), rng)


def dirichlet_sizes(
    num_examples: int, num_parts: int, *, alpha: float, seed: int = 0, min_examples: int = 1
) -> list[Indices]:
    """Sizes are shares drawn from Dir(alpha) (Li et al. 2022, ICDE: "quantity skew").

    Args:
        num_examples: how many there are to be split.
        num_parts: how many learners there are.
        alpha: above 0; 0.1 leaves most examples with a few parts, 100 is nearly even.
        seed: the same arguments give the same parts.
        min_examples: what each part has before the others are dealt out by share.

    Returns:
        For each part the positions of its examples, ascending.

    Raises:
        SettingError: an argument is out of range, or there are not ``num_parts * min_examples`` examples.
    """
    check_above_0(alpha, "alpha")
    check(num_examples, num_parts, min_examples)
    rng = np.random.default_rng(seed)
    return deal(_sizes(rng.dirichlet(np.full(num_parts, alpha)), num_examples, min_examples), rng)


def _sizes(shares: npt.NDArray[np.float64], num_examples: int, min_examples: int) -> Indices:
    """Whole numbers that sum to ``num_examples``: the minimum, and a share of what is left over."""
    spare = num_examples - len(shares) * min_examples
    cuts = np.rint(np.cumsum(shares) * spare).astype(np.int64)
    cuts[-1] = spare  # the shares' sum is not exactly 1
    return min_examples + np.diff(np.minimum(cuts, spare), prepend=0)
