"""What is measured. Each module of this package asks one question and offers it as ``QUESTION``.

To add one, write a file here; nothing else has to know of it (``benchmarks/README.md``).
"""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""One thing measured, as JSON: numbers, texts, lists and dicts of them."""
Cell = tuple[int, int]
"""Learners, parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much is to be measured."""

    quick: bool = False
    """Only whether it works: the smallest cell, two rounds, once."""
    cells: tuple[Cell, ...] | None = None
    """None: those of the question."""
    rounds: int = 5
    """That are counted in each block."""
    repetitions: int = 3
    """Blocks of each system, in alternation."""
    cell_s: float = float("inf")
    """Of a cell that is held against a peer: half of it for trying the peer's settings; then no block begins
    but the first two."""
    transports: tuple[str, ...] = ("embedded", "rabbitmq")
    setting: Mapping[str, str] = field(default_factory=dict)
    """Of a peer's settings only those with these values are tried; with one left, nothing is swept."""
    end_at: float = field(default=float("inf"))
    """No cell begins after it, by ``time.monotonic``."""

    @property
    def is_over(self) -> bool:
        """Whether the time is used up."""
        return time.monotonic() > self.end_at

    def cells_of(self, own: tuple[Cell, ...], quick: Cell) -> tuple[Cell, ...]:
        """Those to measure, where a question's own are ``own``."""
        return self.cells or ((quick,) if self.quick else own)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question, how it is answered, and how the answer is shown."""

    name: str
    """As given on the command line; of its file in ``results/``, and of its picture."""
    title: str
    """Above its section of the page."""
    place: int
    """On the page: small numbers come first."""
    run: Callable[[Options], Iterator[Row]]
    """Measure; rows come one by one and are saved at once. A row with a ``key`` can be measured again
    alone."""
    text: Callable[[Sequence[Row]], str]
    """The section: Markdown without the title. Every figure in it is from the rows; those that failed are
    not among them, the page lists them."""
    share: float = 1.0
    """Of a time that is limited, beside those of the other questions."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Of the rows that a whole run makes, with what the page calls those that are not there."""
    settings: Sequence[Sequence[Mapping[str, str | float]]] = ()
    """Of each peer that ``Options.setting`` chooses among."""
    plot: Callable[[Sequence[Row], Path], bool] | None = None
    """Draw the rows into this SVG; False where there is nothing to draw."""


def all_questions() -> Mapping[str, Question]:
    """By name, in the order of the page."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    found: list[Question] = [importlib.import_module(f"{__name__}.{name}").QUESTION for name in names]
    return {one.name: one for one in sorted(found, key=lambda one: one.place)}
