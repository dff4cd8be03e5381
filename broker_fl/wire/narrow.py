"""Encodings that keep each tensor's layout: the buffer as it is, or narrower floats."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from broker_fl.errors import FrameRefused
from broker_fl.model import DTYPES, FLOATS, Array, Model, ModelSpec, TensorSpec


class Raw:
    """The buffer as it is: lossless, no copy."""

    coarse: ClassVar[bool] = False
    of_versions: ClassVar[bool] = True

    def keeping(self, _: Collection[str]) -> Self:
        """Itself: what all tensors can bear."""
        return self

    def num_bytes(self, spec: ModelSpec) -> int:
        """As in memory."""
        return spec.num_bytes

    def encode(self, model: Model) -> Array:
        """The model's own buffer."""
        return model.buffer

    def overflow(self, _: Model) -> None:
        """Nothing is changed."""

    def decode(self, buffer: Array, spec: ModelSpec) -> Model:
        """A model around ``buffer``."""
        return checked(Model(spec, buffer))


@dataclass(frozen=True, slots=True)
class Narrowed:
    """Floating-point tensors wider than ``dtype`` are sent as ``dtype``; rounding is to nearest, ties to
    even, of float64 by way of float32.
    """

    dtype: str
    kept: frozenset[str] = frozenset()
    """Float tensors that are left as they are: the job's ``buffers``."""
    coarse: ClassVar[bool] = False
    of_versions: ClassVar[bool] = True

    def keeping(self, names: Collection[str]) -> Self:
        """The same that leaves these tensors as they are."""
        return replace(self, kept=frozenset(names))

    def num_bytes(self, spec: ModelSpec) -> int:
        """Of the narrower spec."""
        return self._narrow(spec).num_bytes

    def encode(self, model: Model) -> Array:
        """A narrower copy, or the model's own buffer where nothing is wider."""
        narrow = self._narrow(model.spec)
        return model.buffer if narrow == model.spec else _cast(model, narrow).buffer

    def overflow(self, model: Model) -> str | None:
        """The first tensor with a finite value that is too large for ``dtype``."""
        for tensor in model.spec.tensors:
            if self._narrow_tensor(tensor) is not tensor and tensor.num_bytes:
                array = model[tensor.name]
                ends = np.array([array.min(), array.max()])
                with np.errstate(over="ignore"):
                    if (np.isfinite(ends) & ~np.isfinite(ends.astype(DTYPES[self.dtype]))).any():
                        return tensor.name
        return None

    def decode(self, buffer: Array, spec: ModelSpec) -> Model:
        """Widened to ``spec``."""
        narrow = self._narrow(spec)
        model = checked(Model(narrow, buffer))
        return model if narrow == spec else _cast(model, spec)

    def _narrow(self, spec: ModelSpec) -> ModelSpec:
        return ModelSpec(tuple(self._narrow_tensor(tensor) for tensor in spec.tensors))

    def _narrow_tensor(self, tensor: TensorSpec) -> TensorSpec:
        if tensor.name in self.kept:
            return tensor
        wider = tensor.dtype in FLOATS and DTYPES[tensor.dtype].itemsize > DTYPES[self.dtype].itemsize
        return TensorSpec(tensor.name, self.dtype, tensor.shape) if wider else tensor


def _cast(model: Model, spec: ModelSpec) -> Model:
    result = Model.blank(spec)
    # What is too large for the narrower type becomes inf. In an update the controller refuses that; of a
    # version it asks ``overflow`` before.
    with np.errstate(all="ignore"):
        for name, array in model.items():
            np.copyto(result[name], array, casting="unsafe")
    return result


def checked(model: Model) -> Model:
    """Refuse what numpy would take for a boolean and then compute with as any number."""
    for run in model.spec.runs:
        if run.dtype == "bool" and model.buffer[run.start : run.stop].max() > 1:
            raise FrameRefused("a boolean tensor holds bytes other than 0 and 1")
    return model
