"""What an update weighs: its examples, its optimiser steps, or as much as any other."""

from __future__ import annotations

from typing import Literal

from broker_fl.errors import UpdateRefused
from broker_fl.interfaces import Contribution

Weighting = Literal["examples", "steps", "equal"]


def weight_of(contribution: Contribution, weighting: Weighting) -> float:
    """The weight, before it is divided by the sum of all.

    Raises:
        UpdateRefused: trained on no example, or the steps are asked for and there are none.
    """
    if contribution.num_examples < 1:
        raise UpdateRefused("the update was trained on no example, so it has no weight")
    match weighting:
        case "examples":
            return float(contribution.num_examples)
        case "steps":
            return float(steps_of(contribution))
        case "equal":
            return 1.0


def steps_of(contribution: Contribution) -> int:
    """The optimiser steps behind the update.

    Raises:
        UpdateRefused: there are none.
    """
    if contribution.num_steps < 1:
        raise UpdateRefused(
            f"num_steps is {contribution.num_steps}, and the rule counts optimiser steps: the learner must "
            "report how many it did"
        )
    return contribution.num_steps
