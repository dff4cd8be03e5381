"""Aggregation: pure arithmetic, one rule per file, each citing its paper.

To add a rule: its settings as a class in ``wire/job.py``, a file here, and its name in ``RULES``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker_fl.aggregation.fedavg import FedAvg
from broker_fl.interfaces import Rule

RULES: dict[str, Callable[[Any], Rule]] = {
    "fedavg": lambda settings: FedAvg(),
}
"""Name of a rule → how it is made from its settings in ``wire/job.py``."""


def make_rule(settings: Any) -> Rule:
    """The rule that a job's ``rule`` settings name."""
    return RULES[settings.name](settings)
