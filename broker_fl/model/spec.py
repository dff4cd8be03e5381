"""What a model looks like without its values, and how its tensors lie in one flat little-endian buffer.

Layout of the buffer (normative text: ``schemas/README.md``): the tensors in order, C-contiguous, each
starting at the next multiple of its item size; gaps are zero.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import ml_dtypes
import msgpack
import numpy as np
import numpy.typing as npt
import xxhash

from broker_fl.errors import SettingError

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype("i1"),
    "int16": np.dtype("<i2"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
"""The element types a model may have; everything else is refused."""

FLOATS = frozenset({"float16", "float32", "float64", "bfloat16"})
MAX_NAME_CHARS = 512
MAX_DIMENSIONS = 32


class ModelError(SettingError):
    """Arrays that are not a model, or not the model that was asked for; the message names the tensor."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type (a key of ``DTYPES``) and shape of one tensor; shape ``()`` is a scalar."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > MAX_NAME_CHARS:
            raise ModelError(f"a tensor's name has 1 to {MAX_NAME_CHARS} characters, not {len(self.name)}")
        if not self.name.isascii() and any("\ud800" <= char <= "\udfff" for char in self.name):
            raise ModelError(f"a tensor's name is Unicode text; {self.name!r} is not")
        if self.dtype not in DTYPES:
            raise ModelError(
                f"tensor {self.name!r}: element type {self.dtype!r} is not one of {', '.join(DTYPES)}"
            )
        num_bytes = math.prod(size for size in self.shape if size) * DTYPES[self.dtype].itemsize
        # NumPy makes no array beyond that, not even one that is empty because another size is 0.
        is_usable = len(self.shape) <= MAX_DIMENSIONS and num_bytes < 2**63
        if not is_usable or any(size < 0 for size in self.shape):
            raise ModelError(f"tensor {self.name!r}: shape {str(self.shape)[:100]} is not usable")

    @property
    def num_elements(self) -> int:
        """Product of the shape; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements, without padding."""
        return self.num_elements * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch ``[start, stop)`` of the buffer, in bytes, in which all elements have one type.

    Arithmetic goes run by run, not tensor by tensor: a thousand small tensors cost what one large one does.
    """

    dtype: str
    start: int
    stop: int


class Place(NamedTuple):
    """Where a tensor is in the buffer: ``[start, stop)`` in bytes, and what is there."""

    start: int
    stop: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelSpec:
    """What a model looks like, without its values: the tensors in order."""

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        if len({tensor.name for tensor in self.tensors}) != len(self.tensors):
            names = Counter(tensor.name for tensor in self.tensors)
            double = sorted(name for name, count in names.items() if count > 1)
            raise ModelError(f"tensor names must differ; given more than once: {', '.join(double[:5])}")

    @classmethod
    def of(cls, arrays: Arrays) -> ModelSpec:
        """Describe ``arrays`` in their order."""
        return cls(
            tuple(TensorSpec(name, _dtype_name(name, a), tuple(a.shape)) for name, a in arrays.items())
        )

    @classmethod
    def from_wire(cls, rows: Sequence[Sequence[Any]]) -> ModelSpec:
        """Read the wire form, ``[[name, dtype, [size, …]], …]``."""
        return _read_spec(tuple((name, dtype, tuple(shape)) for name, dtype, shape in rows))

    def to_wire(self) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """The wire form, ``((name, dtype, (size, …)), …)``."""
        return tuple((tensor.name, tensor.dtype, tensor.shape) for tensor in self.tensors)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor starts in the buffer, in bytes."""
        offsets, end = [], 0
        for tensor in self.tensors:
            start = _align(end, DTYPES[tensor.dtype].itemsize)
            offsets.append(start)
            end = start + tensor.num_bytes
        return tuple(offsets)

    @cached_property
    def places(self) -> Mapping[str, Place]:
        """Of each tensor by its name: where it is in the buffer."""
        return {
            one.name: Place(start, start + one.num_bytes, DTYPES[one.dtype], one.shape)
            for one, start in zip(self.tensors, self.offsets, strict=True)
        }

    @cached_property
    def num_bytes(self) -> int:
        """Length of the buffer, padding between tensors included."""
        return self.offsets[-1] + self.tensors[-1].num_bytes if self.tensors else 0

    @cached_property
    def num_elements(self) -> int:
        """Elements of all tensors together ("parameters")."""
        return sum(tensor.num_elements for tensor in self.tensors)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The buffer as maximal stretches of one element type, empty tensors left out."""
        runs: list[Run] = []
        for tensor, start in zip(self.tensors, self.offsets, strict=True):
            stop = start + tensor.num_bytes
            if runs and runs[-1].dtype == tensor.dtype and runs[-1].stop == start:
                runs[-1] = Run(tensor.dtype, runs[-1].start, stop)
            elif stop > start:
                runs.append(Run(tensor.dtype, start, stop))
        return tuple(runs)

    @cached_property
    def digest(self) -> str:
        """32 hex digits (XXH3-128 of the packed wire form): equal for equal specs."""
        return xxhash.xxh3_128_hexdigest(msgpack.packb(self.to_wire()))

    def running_digest(self) -> xxhash.xxh3_128:
        """What a model's bytes are fed to, in order, for its ``digest``."""
        return xxhash.xxh3_128(self.digest.encode())

    def describes(self, arrays: Arrays) -> bool:
        """Whether these are arrays of just these names, types and shapes, in any order."""
        return len(arrays) == len(self.places) and all(
            (array := arrays.get(name)) is not None and array.shape == shape and array.dtype == dtype
            for name, (_, _, dtype, shape) in self.places.items()
        )

    def differences(self, other: ModelSpec) -> list[str]:
        """What is different in ``other``, in words that name tensors; empty when only the order differs."""
        mine = {tensor.name: tensor for tensor in self.tensors}
        theirs = {tensor.name: tensor for tensor in other.tensors}
        found = [f"tensor {name!r} is missing" for name in mine if name not in theirs]
        found += [f"tensor {name!r} is not in the model" for name in theirs if name not in mine]
        for name in mine.keys() & theirs.keys():
            a, b = mine[name], theirs[name]
            if a.shape != b.shape:
                found.append(f"tensor {name!r} has shape {b.shape} instead of {a.shape}")
            if a.dtype != b.dtype:
                found.append(f"tensor {name!r} has element type {b.dtype} instead of {a.dtype}")
        return sorted(found)


def parts(spec: ModelSpec, buffers: Set[str]) -> dict[Run, bool]:
    """The model as maximal stretches of one type that are trained, or are not; and which of the two."""
    found: dict[Run, bool] = {}
    last = Run("", 0, 0)
    for tensor, start in zip(spec.tensors, spec.offsets, strict=True):
        if not tensor.num_bytes:
            continue
        run = Run(tensor.dtype, start, start + tensor.num_bytes)
        is_trained = tensor.dtype in FLOATS and tensor.name not in buffers
        if (last.dtype, last.stop) == (run.dtype, start) and found[last] == is_trained:
            del found[last]
            run = Run(run.dtype, last.start, run.stop)
        found[run] = is_trained
        last = run
    return found


@lru_cache(maxsize=4)
def _read_spec(rows: tuple[tuple[str, str, tuple[int, ...]], ...]) -> ModelSpec:
    """Once for all that are given the same: each task brings it, to each learner of a process."""
    return ModelSpec(tuple(TensorSpec(*row) for row in rows))


def _align(offset: int, size: int) -> int:
    return -(-offset // size) * size


def _dtype_name(name: str, array: Array) -> str:
    dtype = array.dtype.newbyteorder("<")
    for key, allowed in DTYPES.items():
        if dtype == allowed:
            return key
    raise ModelError(f"tensor {name!r}: element type {array.dtype} is not one of {', '.join(DTYPES)}")
