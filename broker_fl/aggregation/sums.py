"""The un-normalised weighted sum of models, ``(Σ wᵢ xᵢ, Σ wᵢ)``.

It is exact whoever drops out, and sums of sums compose.

Element types: float16, bfloat16 and float32 are summed in float32 (many of them in float64, ``WIDE_FROM``),
everything else in float64. Integer and
boolean tensors (counters, masks) become their weighted mean, rounded to the nearest integer, ties to even; a
boolean becomes the weighted majority, a tie False.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

from broker_fl import machine
from broker_fl.aggregation import kernels
from broker_fl.errors import AggregationError, UpdateRefused
from broker_fl.model import DTYPES, Array, Model, ModelSpec, Run, TensorSpec

SUM_DTYPE: dict[str, type[np.floating[Any]]] = {
    "float16": np.float32,
    "bfloat16": np.float32,
    "float32": np.float32,
}


STAGED_BYTES = 128 << 20
"""Of updates that wait to be added together, at most. So large ones wait for no other."""
HANDED_UPDATES = 3
"""Of updates that were handed over within the process, which take no memory of their own, so many may wait
whatever their size: each pass then reads and writes the sum for two fifths of what it moves.
"""
HANDED_SHARE = 8
"""As long as they are not more than this part of the machine's memory."""
WIDE_FROM = 64
"""Updates from which on a sum of float32 goes on in float64. Each addition rounds by half of a float32's last
place; those of one learner hide that, ten thousand nearly equal updates add up to 1e-4 of the mean.
"""
WIDE_BYTES = 64 << 20
"""Larger models stay in float32: their sum would need the room of two more."""
STAGED_UPDATES = 8
"""That wait, at most: the sum is then read and written for a quarter of what its updates are, and a round's
last update does not wait for long until the others are added.
"""


class Intact:
    """Whether every term is in a sum as a whole: not after an addition broke off, as when memory ran out."""

    def __init__(self) -> None:
        self._is_intact = True

    def __bool__(self) -> bool:
        return self._is_intact

    def check(self) -> None:
        """Before the sum is used.

        Raises:
            AggregationError: an addition broke off.
        """
        if not self._is_intact:
            raise AggregationError("an addition broke off before, so the sum of the updates is lost")

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Around all that is written to the sum for one operation on it.

        Raises:
            AggregationError: an earlier one broke off.
        """
        self.check()
        self._is_intact = False
        yield
        self._is_intact = True


class WeightedSum:
    """``Σ wᵢ xᵢ`` run by run, and ``Σ wᵢ``. Memory: one model, in the type of the sum, and what there was
    ``room`` for when it was added.

    Where that is the model's own type, the sum is where the mean will be.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.total_weight = 0.0
        self._result: Model | None = None
        self._totals: list[Array] | None = None
        self._num_added = 0
        self._bounds = [0.0 for _ in spec.runs]
        """Of each run's sum: no element of it is larger than this."""
        self._staged: list[tuple[Sequence[Array], float]] = []
        """What is in the sum by its bounds and its weight, and waits for others to be added with."""
        self._staged_bytes = 0
        self._intact = Intact()

    def add(
        self,
        model: Model,
        weight: float,
        *,
        magnitudes: Sequence[float] | None = None,
        room: int = 0,
    ) -> None:
        """Take one model in.

        Args:
            model: of this spec.
            weight: positive and finite.
            magnitudes: of the model's runs, where they are known (``looks.py``).
            room: how many bytes of models may wait for ``settle`` with this one, to which nobody writes any
                more, so that several are added in one pass; to the last bit the sum is the same.

        Raises:
            UpdateRefused: another spec, a weight that is not positive and finite, a value that is NaN or
                infinite, or values with which the sum could overflow; nothing was changed.
            AggregationError: an addition before broke off, so that the sum is lost.
            MemoryError: the model is not in the sum.
        """
        magnitudes = check_addable(self.spec, model, weight, magnitudes)
        bounds = self._bounds_with(model, weight, magnitudes)
        self._stage([model.run(run) for run in self.spec.runs], weight, room)
        self._bounds = bounds
        self.total_weight += weight

    def _stage(self, values: Sequence[Array], weight: float, room: int) -> None:
        """Have a term wait, or add it; if that fails it does not wait, since nobody counts its learner."""
        self._intact.check()
        if self._num_added + 1 == WIDE_FROM and self.spec.num_bytes <= WIDE_BYTES:
            self._widen()
        num_bytes = sum(array.nbytes for array in values)
        if len(self._staged) >= STAGED_UPDATES or self._staged_bytes + num_bytes > room:
            self.settle()
        if num_bytes > room:
            self._fold([(values, weight)])
        else:
            self._staged.append((values, weight))
            self._staged_bytes += num_bytes
        self._num_added += 1

    def _widen(self) -> None:
        """Go on in float64."""
        self.settle()
        self._totals = [total.astype(np.float64) for total in self._totals or self._begun()]
        self._result = None

    def settle(self) -> None:
        """Add what waits; its memory is not needed any more. Nothing is done to a sum that is lost."""
        if self._staged and self._intact:
            self._fold(self._staged)
            self._staged, self._staged_bytes = [], 0

    def _fold(self, terms: Sequence[tuple[Sequence[Array], float]], divisor: float | None = None) -> None:
        """Add the terms, and divide. A failure before the first addition changes nothing; one after it
        leaves a sum of which nobody knows what is in it, and which is not used any more.
        """
        begun, self._totals = self._totals is not None, self._totals or self._begun()
        with self._intact.changing():
            for place, total in enumerate(self._totals):
                of_run = [(values[place], weight) for values, weight in terms]
                kernels.fold(total, of_run, begun=begun, divisor=divisor)

    def _begun(self) -> list[Array]:
        """Room for the sum of each run; what is in it is undefined."""
        self._result = Model.blank(self.spec) if any(map(_in_place, self.spec.runs)) else None
        return [
            self._result.run(run)
            if self._result is not None and _in_place(run)
            else np.empty(length(run), sum_dtype(run))
            for run in self.spec.runs
        ]

    def _bounds_with(self, model: Model, weight: float, magnitudes: Sequence[float]) -> list[float]:
        """One learner's huge values must not cost the others their round."""
        bounds = []
        for run, bound, magnitude in zip(self.spec.runs, self._bounds, magnitudes, strict=True):
            limit = float(np.finfo(sum_dtype(run)).max)
            grown = bound + weight * magnitude
            if grown > limit:
                grown = bound + weight * kernels.largest(model.run(run))
            if grown > limit:
                raise UpdateRefused(f"the update has {run.dtype} values with which the sum could overflow")
            bounds.append(grown)
        return bounds

    def add_sum(self, total: Model, weight: float, *, room: int = 0) -> None:
        """Take in ``Σ wⱼ xⱼ`` of others, as ``total`` gives it; ``weight`` is their ``Σ wⱼ``. ``room`` as in
        ``add``.

        Raises:
            UpdateRefused: another spec, a weight that is not positive and finite, a value that is NaN or
                infinite, or values with which the sum could overflow; nothing was changed.
            AggregationError: an addition before broke off, so that the sum is lost.
            MemoryError: the sum of the others is not in this one.
        """
        check_addable(sum_spec(self.spec), total, weight)
        bounds = self._bounds_with_sum(total)
        self._stage(list(total.values()), 1.0, room)
        self._bounds = bounds
        self.total_weight += weight

    def _bounds_with_sum(self, total: Model) -> list[float]:
        bounds = []
        for run, bound, theirs in zip(self.spec.runs, self._bounds, total.values(), strict=True):
            limit = float(np.finfo(sum_dtype(run)).max)
            grown = bound + kernels.magnitude(theirs)
            if grown > limit:
                grown = bound + kernels.largest(theirs)
            if grown > limit:
                raise UpdateRefused(f"the sum has {run.dtype} values with which the round's could overflow")
            bounds.append(grown)
        return bounds

    def total(self) -> Model:
        """``Σ wᵢ xᵢ`` as a model of ``sum_spec``; the sum is used up.

        Raises:
            AggregationError: nothing was added, or an addition broke off.
        """
        self._intact.check()
        self.settle()
        if self._totals is None:
            raise AggregationError("no update was folded, so there is no sum")
        totals, self._totals, self._result = self._totals, None, None
        narrow = [
            total.astype(sum_dtype(run), copy=False)
            for run, total in zip(self.spec.runs, totals, strict=True)
        ]
        return Model.of(dict(zip(_names(self.spec), narrow, strict=True)), sum_spec(self.spec))

    def mean(self) -> Model:
        """``Σ wᵢ xᵢ / Σ wᵢ``; the sum is used up.

        Raises:
            AggregationError: nothing was added, an addition broke off, or a float tensor of the mean is not
                finite.
        """
        self._intact.check()
        if self._totals is None and not self._staged:
            raise AggregationError("no update was folded, so there is nothing to average")
        self._fold(self._staged, self.total_weight)
        totals, self._totals = self._totals or [], None
        self._staged, self._staged_bytes = [], 0
        is_there, result, self._result = self._result is not None, self._result, None
        result = result or Model.blank(self.spec)
        for run, total, bound in zip(self.spec.runs, totals, self._bounds, strict=True):
            if not (is_there and _in_place(run)):
                write_mean(result.run(run), total)
            if not self._is_finite(result.run(run), bound):
                raise AggregationError(f"the mean of the updates overflows {run.dtype}")
        return result

    def _is_finite(self, mean: Array, bound: float) -> bool:
        """It is looked at only where the bound leaves room for doubt; the half is for what was rounded."""
        if mean.dtype == SUM_DTYPE.get(mean.dtype.name, np.float64):
            limit = float(np.finfo(mean.dtype).max)
            if bound < limit / 2 and bound / self.total_weight < limit / 2:
                return True
        return kernels.all_finite(mean)


def handed_room(spec: ModelSpec) -> int:
    """Bytes of updates that were handed over within this process and may wait to be added together."""
    machine_share = (machine.memory_bytes() or 0) // HANDED_SHARE
    return max(STAGED_BYTES, min(HANDED_UPDATES * spec.num_bytes, machine_share))


@lru_cache(maxsize=64)
def sum_spec(spec: ModelSpec) -> ModelSpec:
    """What the sum of such models looks like on the wire: a flat tensor ``sum.<i>`` for each run of ``spec``.

    Runs are the maximal stretches of tensors of one element type; those without elements are left out. Its
    type is that of the sum, ``float32`` or ``float64``.
    """
    return ModelSpec(
        tuple(
            TensorSpec(name, np.dtype(sum_dtype(run)).name, (length(run),))
            for name, run in zip(_names(spec), spec.runs, strict=True)
        )
    )


def _names(spec: ModelSpec) -> list[str]:
    return [f"sum.{place}" for place in range(len(spec.runs))]


def check_addable(
    spec: ModelSpec, model: Model, weight: float, magnitudes: Sequence[float] | None = None
) -> Sequence[float]:
    """Hold one contribution against what can be summed; a bound of each run's values comes back. Values are
    looked at where their ``magnitudes`` are not known already.

    Raises:
        UpdateRefused: with the tensor that is wrong and why.
    """
    if not (math.isfinite(weight) and weight > 0):
        raise UpdateRefused(f"the weight of an update is positive and finite, not {weight}")
    if model.spec.digest != spec.digest:
        differences = spec.differences(model.spec) or ["its tensors are in another order"]
        raise UpdateRefused(f"the update does not fit the model: {'; '.join(differences[:5])}")
    if magnitudes is None:
        magnitudes = [kernels.magnitude(model.run(run)) for run in spec.runs]
    if not all(math.isfinite(magnitude) for magnitude in magnitudes):
        bad = next(name for name, array in model.items() if not kernels.all_finite(array.reshape(-1)))
        raise UpdateRefused(f"tensor {bad!r} of the update has values that are NaN or infinite")
    return magnitudes


def write_mean(target: Array, mean: Array) -> None:
    """Write a mean, in the type of the sum, into a run of a model; rounded as the head of this file says."""
    if target.dtype == np.bool_:
        target[...] = mean > 0.5
    elif target.dtype.kind in "iu":
        limits = np.iinfo(target.dtype)
        # Of int64 the largest is no float64; the next one above would wrap around.
        largest = float(limits.max) if limits.bits < 64 else np.nextafter(float(limits.max), 0.0)
        target[...] = np.clip(np.rint(mean), float(limits.min), largest)
    else:
        with np.errstate(over="ignore"):  # found by the check that follows
            target[...] = mean


def sum_dtype(run: Run) -> type[np.floating[Any]]:
    """The type in which elements of a run are summed."""
    return SUM_DTYPE.get(run.dtype, np.float64)


def _in_place(run: Run) -> bool:
    """Whether the sum has the type of the elements."""
    return np.dtype(sum_dtype(run)) == DTYPES[run.dtype]


def length(run: Run) -> int:
    """Elements of a run."""
    return (run.stop - run.start) // DTYPES[run.dtype].itemsize
