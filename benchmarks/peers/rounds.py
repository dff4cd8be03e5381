"""What the measurements of all systems share: the model, its check, and the clock of rounds.

Imported in the environments of the peers, too: NumPy and the standard library only.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TENSORS = 20
"""A model of so many equal tensors, as a small network has."""

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


def initial_weights(num_parameters: int) -> Weights:
    """``TENSORS`` equal float32 tensors of zeros."""
    size = max(1, num_parameters // TENSORS)
    return {f"layer{index}": np.zeros(size, np.float32) for index in range(TENSORS)}


def add_constant(weights: Mapping[str, NDArray[np.float32]], constant: float) -> None:
    """All the training there is, in place."""
    for array in weights.values():
        np.add(array, np.float32(constant), out=array)


def check_weights(weights: Mapping[str, NDArray[np.float32]], num_learners: int, num_rounds: int) -> None:
    """Hold the final model against what adding 1, 2, …, ``num_learners`` in each round must give.

    Raises:
        AssertionError: an update was lost, skipped or counted twice.
    """
    expected = num_rounds * (num_learners + 1) / 2
    assert len(weights) == TENSORS
    for array in weights.values():
        np.testing.assert_allclose(np.asarray(array), expected, rtol=1e-4)


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
