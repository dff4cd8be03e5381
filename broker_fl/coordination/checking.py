"""Whether a learner's result can be right."""

from __future__ import annotations

import math

from broker_fl.wire.messages import Result


def problem_of(result: Result, steps: object) -> str | None:
    """Why an update with this result is refused; None if nothing speaks against it.

    Args:
        result: of training.
        steps: the optimiser steps that its task asked for; anything but an int: it did not say.
    """
    for name, value in result.metrics.items():
        if not math.isfinite(value):
            return f"its training metric {name!r} is {value}: the training diverged"
    if isinstance(steps, int) and result.num_steps not in (0, steps):
        return f"its task asked for {steps} optimiser steps, it reports {result.num_steps}"
    return None
