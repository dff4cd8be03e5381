"""Many models at once, block by block: the same stretch of each of them as the rows of one small array.

What is computed from all updates then needs a block besides the updates themselves, not a copy of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from broker_fl.aggregation import kernels
from broker_fl.aggregation.sums import length, sum_dtype, write_mean
from broker_fl.errors import AggregationError
from broker_fl.model import FLOATS, Array, Model, ModelSpec, Run

BLOCK_ELEMENTS = 1 << 18
"""Of a block, over all rows: 1 or 2 MiB, which stay in a core's cache."""

MIN_WIDTH = 1024
"""Of a block, for very many models: below this, what numpy takes per call outweighs its work."""


class Block(NamedTuple):
    """Elements ``[start, stop)`` of a run, of every model."""

    run: Run
    start: int
    stop: int
    rows: Array
    """A copy, models × elements, in the type of a sum; it may be written to until the next block."""


def blocks(spec: ModelSpec, models: Sequence[Model]) -> Iterator[Block]:
    """All elements, in order; floats up to 32 bits come as float32, everything else as float64."""
    for run in spec.runs:
        yield from _blocks_of(run, models, sum_dtype(run))


def float_blocks(spec: ModelSpec, models: Sequence[Model]) -> Iterator[Array]:
    """Rows of the float tensors only, in float64: what has a length and a distance."""
    for run in spec.runs:
        if run.dtype in FLOATS:
            for block in _blocks_of(run, models, np.float64):
                yield block.rows


def by_coordinate(spec: ModelSpec, models: Sequence[Model], function: Callable[[Array], Array]) -> Model:
    """The model whose every element is ``function`` of that element in all models.

    Integers and booleans are computed in float64 and rounded as in ``sums``.

    Raises:
        AggregationError: a float of it is not finite.
    """
    result = Model.blank(spec)
    for run, start, stop, rows in blocks(spec, models):
        target = result.run(run)[start:stop]
        with np.errstate(over="ignore", invalid="ignore"):  # looked for right after
            write_mean(target, function(rows))
        if not kernels.all_finite(target):
            raise AggregationError(f"what the updates are combined to overflows {run.dtype}")
    return result


def _blocks_of(run: Run, models: Sequence[Model], dtype: type[np.floating[Any]]) -> Iterator[Block]:
    views = [model.run(run) for model in models]
    width = max(MIN_WIDTH, BLOCK_ELEMENTS // len(models))
    for start in range(0, length(run), width):
        stop = min(start + width, length(run))
        rows = np.empty((len(views), stop - start), dtype)
        for row, view in zip(rows, views, strict=True):
            row[...] = view[start:stop]
        yield Block(run, start, stop, rows)
