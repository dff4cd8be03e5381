"""Whether a learner's result can be right."""

from __future__ import annotations

import math
from collections.abc import Mapping

from broker_fl.wire.messages import Result


def problem_of(result: Result, paced: int | None, wanted: object) -> str | None:
    """Why an update with this result is refused; None if nothing speaks against it.

    Args:
        result: of training.
        paced: the optimiser steps that pacing has set for its task; None: it did not.
        wanted: those that the job's own parameters ask for; anything but an int: they do not. An app that
            counts no steps may let them be.
    """
    return problem_of_training(result.metrics, result.num_steps, paced, wanted)


def problem_of_training(
    metrics: Mapping[str, float], num_steps: int, paced: int | None, wanted: object
) -> str | None:
    """Why an update from such a training is refused; None if nothing speaks against it.

    Args:
        metrics: of the training.
        num_steps: optimiser steps that were done; 0 if nobody counted.
        paced: as of ``problem_of``.
        wanted: as of ``problem_of``.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            return f"its training metric {name!r} is {value}: the training diverged"
    steps = wanted if paced is None else paced
    uncounted = num_steps == 0 and paced is None
    if isinstance(steps, int) and num_steps != steps and not uncounted:
        return f"its task asked for {steps} optimiser steps, it reports {num_steps}"
    return None
