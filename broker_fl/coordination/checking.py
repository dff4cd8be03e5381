"""Whether a learner's result can be right."""

from __future__ import annotations

import math
from collections.abc import Mapping

from broker_fl.wire.messages import Result


def problem_of(result: Result, steps: object) -> str | None:
    """Why an update with this result is refused; None if nothing speaks against it.

    Args:
        result: of training.
        steps: the optimiser steps that its task asked for; anything but an int: it did not say.
    """
    return problem_of_training(result.metrics, result.num_steps, steps)


def problem_of_training(metrics: Mapping[str, float], num_steps: int, steps: object) -> str | None:
    """Why an update from such a training is refused; None if nothing speaks against it.

    Args:
        metrics: of the training.
        num_steps: optimiser steps that were done; 0 if nobody counted.
        steps: those that the task asked for; anything but an int: it did not say.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            return f"its training metric {name!r} is {value}: the training diverged"
    if isinstance(steps, int) and num_steps not in (0, steps):
        return f"its task asked for {steps} optimiser steps, it reports {num_steps}"
    return None
