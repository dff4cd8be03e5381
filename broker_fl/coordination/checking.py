"""Whether a learner's result can be right."""

from __future__ import annotations

import math

from broker_fl.wire.messages import Result


def problem_of(result: Result, paced: int | None, wanted: object) -> str | None:
    """Why an update with this result is refused; None if nothing speaks against it.

    Args:
        result: of training.
        paced: the optimiser steps that pacing has set for its task; None: it did not.
        wanted: those that the job's own parameters ask for; anything but an int: they do not. An app that
            counts no steps may let them be.
    """
    for name, value in result.metrics.items():
        if not math.isfinite(value):
            return f"its training metric {name!r} is {value}: the training diverged"
    steps = wanted if paced is None else paced
    uncounted = result.num_steps == 0 and paced is None
    if isinstance(steps, int) and result.num_steps != steps and not uncounted:
        return f"its task asked for {steps} optimiser steps, it reports {result.num_steps}"
    return None
