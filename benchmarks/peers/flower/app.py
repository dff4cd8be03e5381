"""What both engines of Flower run: the ServerApp's rounds, and a client's answer."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from benchmarks.peers.rounds import Enough, RoundClock, add_constant, check_weights, initial_weights

DEFAULT_BACKOFF_S = 1.0
"""Flower's own; asserted where it is replaced."""


class TimedRounds:
    """A ServerApp's work: FedAvg over all clients, each round's end noted; the final model is checked.

    ``began_s``: when the process began, for the clock of rounds.
    """

    def __init__(self, options: argparse.Namespace, began_s: float) -> None:
        self._options = options
        self.clock = RoundClock(began_s, options.limit_s, options.least)
        self._newest: Any = None

    def run(self, grid: Any) -> None:
        """All rounds."""
        from flwr.serverapp.strategy import FedAvg

        num_learners = self._options.learners
        strategy = FedAvg(
            fraction_evaluate=0.0, min_train_nodes=num_learners, min_available_nodes=num_learners
        )
        with suppress(Enough):
            strategy.start(
                grid=grid,
                initial_arrays=record(initial_weights(self._options.parameters)),
                num_rounds=self._options.rounds + 1,
                evaluate_fn=self._round_ended,
            )
        final = {name: array.numpy() for name, array in self._newest.items()}
        check_weights(final, num_learners, self.clock.num_rounds)

    def _round_ended(self, round: int, arrays: Any) -> None:
        """Flower calls it with the initial model as round 0, then after each aggregation."""
        if round > 0:
            self._newest = arrays
            self.clock.tick()


def train(message: Any, constant: float) -> Any:
    """What a client answers."""
    from flwr.app import Message, MetricRecord, RecordDict

    weights = {name: array.numpy() for name, array in message.content["arrays"].items()}
    add_constant(weights, constant)
    content = RecordDict({"arrays": record(weights), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content=content, reply_to=message)


def record(weights: Mapping[str, Any]) -> Any:
    """Flower's form of the model."""
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({name: Array(array) for name, array in weights.items()})


def ask_again_after(poll_s: float) -> None:
    """For objects that are still on their way; Flower's own is 1 s."""
    from flwr.supercore.inflatable.inflatable_utils import pull_objects

    assert pull_objects.__kwdefaults__["initial_backoff"] == DEFAULT_BACKOFF_S
    pull_objects.__kwdefaults__["initial_backoff"] = min(poll_s, DEFAULT_BACKOFF_S)


def be_quiet() -> None:
    """Have Flower write errors only; importing it sets its level anew."""
    import flwr.supercore.logger  # noqa: F401

    logging.getLogger("flwr").setLevel(logging.ERROR)
