"""A learner without a federation: in a test, in a notebook, or to see what it reaches on its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker_fl.interfaces import Learner, Parameters
from broker_fl.model import Arrays


@dataclass(slots=True, kw_only=True)
class LocalTask:
    """A ``TaskContext`` that nobody else sees."""

    job: str = "local"
    round: int = 0
    learner: str = "local"
    parameters: Parameters = field(default_factory=dict)
    control: Arrays | None = None
    fraction: float = 0.0
    """What ``progress`` was told last."""

    def progress(self, fraction: float) -> None:
        """Note it in ``fraction``."""
        self.fraction = fraction


def train_alone(
    learner: Learner, model: Arrays, *, rounds: int, parameters: Parameters | None = None
) -> Arrays:
    """Train ``rounds`` tasks in a row on this learner's data only: what it would have without the others."""
    arrays = {name: array.copy() for name, array in model.items()}
    for round in range(rounds):
        task = LocalTask(round=round, parameters=parameters or {})
        arrays = dict(learner.train(arrays, task).model)
    return arrays
