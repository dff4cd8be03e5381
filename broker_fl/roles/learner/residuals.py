"""What a learner keeps between tasks for error feedback: what coarse encodings have lost, of each job.

A learner sends ``C(Δ + e)``, with ``Δ`` what training changed, ``C`` the encoding and ``e`` the residual; and
keeps ``e' = Δ + e − C(Δ + e)`` (Seide et al. 2014, "1-Bit Stochastic Gradient Descent", Interspeech;
Karimireddy et al. 2019, "Error Feedback Fixes SignSGD", ICML, Algorithm 2). So the sum of what counted and
the residual are at all times the sum of the changes whose updates counted.

That holds whatever becomes of an update: whether it counted is known to the controller alone. So the
residual of each round is kept beside the one before until a later task says which of them counts. An update
that was refused, late or lost has changed nothing: neither the model nor the residual. A learner that is
started anew has lost its residual, and begins with none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence, Set

import numpy as np

from broker_fl.model import Array, Model, Run, parts
from broker_fl.wire.encodings import Encoding
from broker_fl.wire.messages import TaskRef

MAX_JOBS = 8
"""Residuals are kept of so many jobs, those used last; one whose residual is gone begins with none."""

Residual = list[Array]
"""Of each run of trained floats: in float64 for float64, else in float32."""


class Residuals:
    """Of one learner. Memory: up to two models for each job."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, dict[int, Residual]] = OrderedDict()

    def encode(
        self, change: Model, used: Encoding, task: TaskRef, counted: int, buffers: Set[str] = frozenset()
    ) -> Array:
        """The change with the residual of round ``counted`` (-1: none), as it is sent for ``task``.

        ``change`` is used up: what is not sent of it is kept. Of ``buffers`` it holds values, which ``used``
        leaves as they are.

        Raises:
            ValueError: the change is not finite, or too large for ``used``; nothing is kept of it.
        """
        kept = self._of(task.job)
        for round in [one for one in kept if one != counted and one < task.round]:
            del kept[round]  # closed without it
        runs = [run for run, is_trained in parts(change.spec, buffers).items() if is_trained]
        totals = _added(change, runs, kept.get(counted))
        if (tensor := used.overflow(change)) is not None:
            raise ValueError(
                f"the change of tensor {tensor!r}, with what earlier rounds left, has a value too large "
                "for the job's encoding; a tensor that is not trained belongs in buffers"
            )
        encoded = used.encode(change)
        sent = used.decode(encoded, change.spec)
        for run, total in zip(runs, totals, strict=True):
            np.subtract(total, sent.run(run), out=total, dtype=total.dtype)
        kept[task.round] = totals
        return encoded

    def _of(self, job: str) -> dict[int, Residual]:
        kept = self._kept.setdefault(job, {})
        self._kept.move_to_end(job)
        while len(self._kept) > MAX_JOBS:
            self._kept.popitem(last=False)
        return kept


def _added(change: Model, runs: Sequence[Run], residual: Residual | None) -> Residual:
    """Their sum, in the type of a residual; ``change`` becomes it in its own type."""
    totals = []
    for index, run in enumerate(runs):
        values = change.run(run)
        total = values.astype(np.float64 if run.dtype == "float64" else np.float32, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):  # looked at right after
            if residual is not None:
                np.add(total, residual[index], out=total)
            if total is not values:
                values[...] = total
        if not np.isfinite(values).all():
            raise ValueError(f"the update has values of {run.dtype} that are NaN or infinite")
        totals.append(total)
    return totals
