"""Coarse encodings: they lose so much of a value that updates are sent in them as changes only.

A learner adds what an encoding lost to its next change (error feedback, ``roles/learner/residuals.py``), so
that nothing is lost for good. The encoded buffer is that of the model, run by run without gaps: a **run** is
a longest stretch of one element type (``ModelSpec.runs``). Runs of integers and booleans are as they are, and
those of the job's ``buffers``, which are runs of their own: statistics have no change, and may be spoilt by
what weights can bear. So is a run that would be no shorter encoded: a buffer in these encodings is never
longer than the model's own, and its length follows from spec and ``buffers``. Normative text:
``schemas/README.md``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from broker_fl import recycled
from broker_fl.errors import FrameRefused
from broker_fl.model import DTYPES, FLOATS, Array, Model, ModelSpec, Run, parts
from broker_fl.wire.narrow import checked

INT8_BLOCK = 256
"""Elements with one scale, which costs 1.6 % of the bytes. Smaller than the usual 1024 to 4096, since a run
may hold many small tensors whose changes differ in size.
"""
MAX_TOPK = 1_000_000
_LARGEST = 127
_STEP = 1 << 18
"""Elements at a time: what is in between stays in the cache. A second thread gained nothing."""
_MAX_INDEX = (1 << 32) - 1
_SAMPLE = 1 << 14


@dataclass(frozen=True, slots=True)
class Coarse(ABC):
    """What the coarse encodings share."""

    kept: frozenset[str] = frozenset()
    """Float tensors that are left as they are, as integers are: the job's ``buffers``."""
    coarse: ClassVar[bool] = True
    of_versions: ClassVar[bool] = True

    def keeping(self, names: Collection[str]) -> Self:
        """The same that leaves these tensors as they are."""
        return replace(self, kept=frozenset(names))

    def num_bytes(self, spec: ModelSpec) -> int:
        """Of all runs."""
        return sum(self._length(run, coded=coded) for run, coded in self._runs(spec))

    def encode(self, model: Model) -> Array:
        """A buffer of its own."""
        buffer, at = recycled.empty(self.num_bytes(model.spec)), 0
        with np.errstate(all="ignore"):  # of values that are not finite, which the receiver refuses
            for run, coded in self._runs(model.spec):
                part = buffer[at : at + self._length(run, coded=coded)]
                if coded:
                    self._write(model.run(run), part)
                else:
                    part[...] = model.buffer[run.start : run.stop]
                at += part.nbytes
        return buffer

    def overflow(self, model: Model) -> str | None:
        """The first tensor with a finite value that ``decode`` would refuse."""
        for run, coded in self._runs(model.spec):
            if coded and self._is_too_large(model.run(run)):
                inside = zip(model.spec.tensors, model.spec.offsets, strict=True)
                return next(
                    tensor.name
                    for tensor, start in inside
                    if run.start <= start < run.stop and self._is_too_large(model[tensor.name].reshape(-1))
                )
        return None

    def _is_too_large(self, values: Array) -> bool:
        """Whether a finite one of them is."""
        return False

    def decode(self, buffer: Array, spec: ModelSpec) -> Model:
        """A model of its own.

        Raises:
            FrameRefused: a value, scale or place that ``encode`` does not write; a boolean that is neither 0
                nor 1.
        """
        model, at = Model.blank(spec), 0
        for run, coded in self._runs(spec):
            part = buffer[at : at + self._length(run, coded=coded)]
            if coded:
                self._read(part, model.run(run))
            else:
                model.buffer[run.start : run.stop] = part
            at += part.nbytes
        return checked(model)

    def _length(self, run: Run, *, coded: bool) -> int:
        return self._packed_bytes(*_size(run)) if coded else run.stop - run.start

    def _runs(self, spec: ModelSpec) -> list[tuple[Run, bool]]:
        """The runs, and which are encoded: those of floats that become shorter."""
        found = parts(spec, self.kept) if self.kept else {run: run.dtype in FLOATS for run in spec.runs}
        return [
            (run, is_float and self._packed_bytes(*_size(run)) < run.stop - run.start)
            for run, is_float in found.items()
        ]

    @abstractmethod
    def _packed_bytes(self, num_elements: int, item_bytes: int) -> int: ...

    @abstractmethod
    def _write(self, values: Array, out: Array) -> None:
        """Encode a run into ``out``: uint8, of just the right length."""

    @abstractmethod
    def _read(self, part: Array, out: Array) -> None:
        """Decode a run into ``out``, of which every element is to be written."""


@dataclass(frozen=True, slots=True)
class BlockInt8(Coarse):
    """Each element as a whole number of its block's scale: a quarter of float32, and a scale a block.

    ``scale = max|x| / 127`` in float32, ``q = x / scale`` rounded to nearest, ties to even: the error is at
    most half a scale. A scale that would be subnormal is 0, and so are its block's elements.
    """

    def _packed_bytes(self, num_elements: int, item_bytes: int) -> int:
        return 4 * _blocks(num_elements) + num_elements

    def _is_too_large(self, values: Array) -> bool:
        """Rounding its scale up may be enough."""
        if not values.size:
            return False
        work = np.float64 if values.dtype == np.float64 else np.float32
        ends = np.array([values.min(), values.max()]).astype(work)
        with np.errstate(over="ignore"):
            scales = (np.abs(ends) / work(_LARGEST)).astype(np.float32)
            decoded = (scales.astype(work) * work(_LARGEST)).astype(values.dtype)
        return bool((np.isfinite(ends) & ~np.isfinite(decoded)).any())

    def _write(self, values: Array, out: Array) -> None:
        scales, numbers = _parts(out, 4 * _blocks(values.size), "<f4", "i1")
        work = np.float64 if values.dtype == np.float64 else np.float32
        for rows, start, stop in _rows(values.size):
            part = values[start:stop].astype(work, copy=False).reshape(rows, -1)
            found = (np.abs(part).max(axis=1) / work(_LARGEST)).astype(np.float32)
            found[found < np.finfo(np.float32).tiny] = 0  # of a NaN that is not so
            first = start // INT8_BLOCK
            scales[first : first + rows] = found
            by = np.where(found == 0, np.float32(np.inf), found).astype(work)
            scaled = np.divide(part, by[:, np.newaxis])
            numbers[start:stop].reshape(rows, -1)[...] = np.rint(scaled, out=scaled)

    def _read(self, part: Array, out: Array) -> None:
        scales, numbers = _parts(part, 4 * _blocks(out.size), "<f4", "i1")
        work = np.float64 if out.dtype == np.float64 else np.float32
        largest = float(np.maximum(scales.max(), -scales.min()))
        with np.errstate(over="ignore"):
            if scales.min() < 0 or not np.isfinite(out.dtype.type(work(largest) * work(_LARGEST))):
                raise FrameRefused(
                    f"the scales of a run of {out.dtype.name} are {float(scales.min()):g} to {largest:g}: "
                    "one is negative, not finite, or too large for the type"
                )
        if numbers.min() < -_LARGEST:
            raise FrameRefused("an element is -128; in 'int8' they are -127 to 127")
        for rows, start, stop in _rows(out.size):
            first = start // INT8_BLOCK
            by = scales[first : first + rows].astype(work)[:, np.newaxis]
            target = out[start:stop].reshape(rows, -1)
            if target.dtype == work:
                target[...] = numbers[start:stop].reshape(rows, -1)
                target *= by
            else:
                target[...] = numbers[start:stop].reshape(rows, -1) * by


@dataclass(frozen=True, slots=True)
class TopK(Coarse):
    """The ``1 / one_in`` of a run's elements that are largest, with their places; the others count as zero.

    ``ceil(n / one_in)`` of ``n`` elements; of equal ones the first. As changes that were left out wait in
    the residual, each is sent in the end (Stich et al. 2018, "Sparsified SGD with Memory", NeurIPS).
    """

    one_in: int = 2
    of_versions: ClassVar[bool] = False  # what is left out of a version would be zero, not unchanged

    def _packed_bytes(self, num_elements: int, item_bytes: int) -> int:
        if num_elements > _MAX_INDEX + 1:
            raise FrameRefused(
                f"{num_elements} elements of one type in a row: 'topk' numbers them with 32 bits"
            )
        return (4 + item_bytes) * -(-num_elements // self.one_in)

    def _write(self, values: Array, out: Array) -> None:
        count = -(-values.size // self.one_in)
        places, sent = _parts(out, 4 * count, "<u4", values.dtype)
        chosen = _largest(np.abs(values), count)
        places[...] = chosen
        sent[...] = values[chosen]

    def _read(self, part: Array, out: Array) -> None:
        count = -(-out.size // self.one_in)
        places, sent = _parts(part, 4 * count, "<u4", out.dtype)
        if places[-1] >= out.size or not (places[1:] > places[:-1]).all():
            raise FrameRefused(f"the places of a run of {out.size} elements do not ascend below its length")
        if not np.isfinite(sent).all():
            raise FrameRefused("a value of a sparse run is NaN or infinite")
        out[...] = 0
        out[places] = sent


def _largest(sizes: Array, count: int) -> Array:
    """Places of the ``count`` largest, ascending; of equal ones the first. NaN is the largest of all."""
    if sizes.dtype.itemsize < 4:
        sizes = sizes.astype(np.float32)
    if np.isnan(sizes.max()):
        sizes = np.where(np.isnan(sizes), np.inf, sizes)
    near = _candidates(sizes, count)
    sizes = sizes[near]
    least = np.partition(sizes, sizes.size - count)[sizes.size - count]
    chosen = sizes > least
    equal = np.flatnonzero(sizes == least)
    chosen[equal[: count - int(np.count_nonzero(chosen))]] = True
    places: Array = near[chosen]
    return places


def _candidates(sizes: Array, count: int) -> Array:
    """Places of at least the ``count`` largest, ascending: those above what is likely by a sample, which
    is several times as fast to find as the ``count``-th largest of all.
    """
    sample = sizes[:: sizes.size // _SAMPLE] if sizes.size > 4 * _SAMPLE else sizes[:0]
    rank = 2 * count * sample.size // sizes.size + 16
    if rank < sample.size:
        likely = np.flatnonzero(sizes >= np.partition(sample, sample.size - rank)[sample.size - rank])
        if likely.size >= count:
            return likely
    return np.arange(sizes.size)


def _size(run: Run) -> tuple[int, int]:
    item_bytes = DTYPES[run.dtype].itemsize
    return (run.stop - run.start) // item_bytes, item_bytes


def _blocks(num_elements: int) -> int:
    return -(-num_elements // INT8_BLOCK)


def _rows(num_elements: int) -> list[tuple[int, int, int]]:
    """How to go through the elements: number of blocks, start, stop; the last block may be a short one."""
    whole = num_elements - num_elements % INT8_BLOCK
    starts = range(0, whole, _STEP)
    parts = [(start, min(start + _STEP, whole)) for start in starts]
    rows = [((stop - start) // INT8_BLOCK, start, stop) for start, stop in parts]
    return rows + ([(1, whole, num_elements)] if whole < num_elements else [])


def _parts(buffer: Array, first_bytes: int, first: str, second: Any) -> tuple[Array, Array]:
    """Two arrays, one behind the other; neither need be aligned."""
    return buffer[:first_bytes].view(first), buffer[first_bytes:].view(second)
