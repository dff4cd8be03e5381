"""What the measurements of all systems share: the model, its check, and the clock of rounds.

Imported in the environments of the peers, too: NumPy and the standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TENSORS = 20
"""A model of so many equal tensors, as a small network has, unless ``TENSORS_VARIABLE`` says otherwise."""
TENSORS_VARIABLE = "BROKER_FL_BENCH_TENSORS"
"""Of the environment: all processes of all systems see it."""
MEAN_CONSTANT = 512
LEAST_RTOL = 2e-6
"""What float32 may lose over the rounds."""

Weights = dict[str, NDArray[np.float32]]


class Enough(Exception):
    """Ends a run before its last round."""


class RoundClock:
    """Takes the time of each round, from one version of the model to the next.

    The first round is not counted: it is the warm-up, and with the start of the process it is what start-up
    means here.
    """

    def __init__(self, began_s: float, limit_s: float, least: int) -> None:
        """``began_s`` is when the process began to import anything, by ``time.perf_counter``; after
        ``limit_s`` seconds of counted rounds no new one begins, unless there are fewer than ``least``.
        """
        self._began_s = began_s
        self._limit_s = limit_s
        self._least = least
        self._ends_s: list[float] = []

    def tick(self) -> None:
        """A round is over.

        Raises:
            Enough: there is no time for another.
        """
        self._ends_s.append(time.perf_counter())
        if self.num_rounds > self._least and self._ends_s[-1] - self._ends_s[0] > self._limit_s:
            raise Enough

    @property
    def num_rounds(self) -> int:
        """That are over, the first one included."""
        return len(self._ends_s)

    def result(self) -> dict[str, object]:
        """Seconds of the counted rounds, and of start-up."""
        ends_s = self._ends_s
        return {
            "startup_s": ends_s[0] - self._began_s,
            "rounds_s": [end - begin for begin, end in pairwise(ends_s)],
        }


def num_tensors() -> int:
    """Of a model, in this run."""
    return int(os.environ.get(TENSORS_VARIABLE, TENSORS))


def initial_weights(num_parameters: int) -> Weights:
    """``num_tensors()`` equal float32 tensors of zeros."""
    tensors = num_tensors()
    size = max(1, num_parameters // tensors)
    return {f"layer{index}": np.zeros(size, np.float32) for index in range(tensors)}


def add_constant(weights: Mapping[str, NDArray[np.float32]], constant: float) -> None:
    """All the training there is, in place."""
    for array in weights.values():
        np.add(array, np.float32(constant), out=array)


def constant_of(index: int) -> float:
    """What a learner adds: 255, 769, 254, 770, … No two add the same, and none what they add on average,
    so that one update less, or one twice, moves the mean, whosever it is. Whole numbers: sums of a few
    hundred are exact in float32.
    """
    far = 257 + index // 2
    return float(MEAN_CONSTANT + far if index % 2 else MEAN_CONSTANT - far)


def check_weights(
    weights: Mapping[str, NDArray[np.float32]], num_learners: int, num_rounds: int, *, rounding: float = 0.0
) -> None:
    """Hold the final model against what adding each learner's constant in each round must give.

    One update that is lost in one of the rounds moves the weights by half a constant in ``num_learners`` ×
    ``num_rounds`` of them, at least; a fifth of that is allowed, or ``rounding`` where models travel rounded.

    Raises:
        AssertionError: an update was lost, skipped or counted twice.
    """
    expected = num_rounds * sum(map(constant_of, range(num_learners))) / num_learners
    assert len(weights) == num_tensors()
    for array in weights.values():
        np.testing.assert_allclose(
            np.asarray(array), expected, rtol=max(LEAST_RTOL, 0.1 / (num_learners * num_rounds), rounding)
        )


def parser_of_rounds(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every system takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--learners", type=int, required=True)
    parser.add_argument("--parameters", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=5, help="that are counted; one more comes first")
    parser.add_argument("--limit-s", type=float, default=120, help="no new round begins after it")
    parser.add_argument("--least", type=int, default=2, help="counted, however long they take")
    parser.add_argument("--out", type=Path, required=True, help="where the JSON goes")
    return parser


def write_result(out: Path, result: Mapping[str, object], packages: Sequence[str]) -> None:
    """Write what was measured, and with which versions."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    out.write_text(json.dumps({**result, "versions": versions}))
