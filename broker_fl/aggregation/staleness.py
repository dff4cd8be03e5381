"""How much an update counts that was trained from an old version (Xie et al. 2019, section 5.2).

"Asynchronous Federated Optimization", arXiv:1903.03934. ``τ`` is how many versions were committed since.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from broker_fl.wire import rules

Discount = Callable[[int], float]
"""``s(τ)``: 1 of a fresh update, never more of an older one."""


def discount(settings: rules.Constant | rules.Hinge | rules.Polynomial) -> Discount:
    """The function that a rule's ``staleness`` settings name."""
    match settings:
        case rules.Constant():
            return lambda _: 1.0
        case rules.Hinge(a=a, b=b):
            return lambda staleness: 1.0 if staleness <= b else 1.0 / (a * (staleness - b) + 1.0)
        case rules.Polynomial(a=a):
            return lambda staleness: float((staleness + 1) ** -a)
        case _:
            assert_never(settings)
