"""Ordered named arrays, and the one buffer that they are views of; in memory and as a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from broker_fl import recycled
from broker_fl.model.spec import DTYPES, Array, Arrays, ModelError, ModelSpec, Run

_ORDER_KEY = "broker_fl.order"


class Model(Mapping[str, Array]):
    """Named arrays over one buffer; reading a name gives a view, so writing to it changes the model."""

    __slots__ = ("__weakref__", "_digest", "buffer", "spec")

    def __init__(self, spec: ModelSpec, buffer: Array) -> None:
        """Wrap ``buffer``: uint8, 1-d, C-contiguous, ``spec.num_bytes`` long. Nothing is copied."""
        if buffer.dtype != np.uint8 or buffer.ndim != 1 or not buffer.flags.c_contiguous:
            raise ModelError("a model's buffer is a contiguous 1-d array of uint8")
        if buffer.nbytes != spec.num_bytes:
            raise ModelError(f"the buffer has {buffer.nbytes} bytes, the spec asks for {spec.num_bytes}")
        self.spec = spec
        self.buffer = buffer
        self._digest: str | None = None
        """Empty: to be kept once it is known."""

    @classmethod
    def empty(cls, spec: ModelSpec) -> Model:
        """A model of zeros."""
        return cls(spec, np.zeros(spec.num_bytes, np.uint8))

    @classmethod
    def blank(cls, spec: ModelSpec) -> Model:
        """A model whose values are undefined, for who writes them all; the gaps between tensors are zero."""
        buffer = recycled.empty(spec.num_bytes)
        end = 0
        for run in spec.runs:
            buffer[end : run.start] = 0
            end = run.stop
        buffer[end:] = 0
        return cls(spec, buffer)

    @classmethod
    def of(cls, arrays: Arrays, spec: ModelSpec | None = None, lent: Array | None = None) -> Model:
        """Make a model of ``arrays``; without a copy if they are, in order, all the views of one model's
        buffer.

        Args:
            arrays: anything ``numpy.asarray`` takes, by name.
            spec: what the result must look like; arrays are matched by name, whatever their order.
            lent: the only buffer that is taken without a copy; None: any.

        Raises:
            ModelError: an array has another shape or type than ``spec`` says, or no usable type at all.
        """
        given = {str(name): np.asarray(value) for name, value in arrays.items()}
        if len(given) != len(arrays):
            raise ModelError("two of the arrays have the same name")
        if spec is None:
            spec = ModelSpec.of(given)
        elif not spec.describes(given) and (problems := spec.differences(ModelSpec.of(given))):
            raise ModelError(
                "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            )
        if (buffer := _shared_buffer(spec, given)) is not None and (lent is None or buffer is lent):
            return cls(spec, buffer)
        model = cls.blank(spec)
        for name, value in given.items():
            model[name][...] = value
        return model

    @classmethod
    def load(cls, path: str | Path) -> Model:
        """Read a safetensors file; the order of the tensors is the saved model's, or the file's."""
        try:
            with safe_open(str(path), framework="numpy") as file:
                metadata = file.metadata() or {}
                names = _saved_order(metadata.get(_ORDER_KEY)) or list(file.keys())
                if sorted(names) != sorted(file.keys()):
                    raise ModelError(f"{path} is damaged: the saved order names other tensors than there are")
                return cls.of({name: file.get_tensor(name) for name in names})
        except (OSError, SafetensorError, ValueError) as error:
            raise ModelError(f"{path} cannot be read as a safetensors file: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        path = Path(path)
        draft = path.with_name(path.name + ".part")
        try:
            save_file(dict(self), str(draft), metadata={_ORDER_KEY: json.dumps(list(self))})
            draft.replace(path)
        except (OSError, SafetensorError) as error:
            draft.unlink(missing_ok=True)
            raise ModelError(f"the model cannot be written to {path}: {error}") from error

    def copy(self) -> Model:
        """A model with a buffer of its own."""
        buffer = recycled.empty(self.buffer.nbytes)
        buffer[...] = self.buffer
        return Model(self.spec, buffer)

    def own(self) -> Model:
        """This model, if it may be written to; else a copy, which may."""
        return self if self.buffer.flags.writeable else self.copy()

    def frozen(self) -> Model:
        """The same buffer, for who only reads: nobody writes to it any more. Its digest is computed once."""
        buffer = self.buffer.view()
        buffer.flags.writeable = False
        model = Model(self.spec, buffer)
        model._digest = ""
        return model

    def run(self, run: Run) -> Array:
        """The 1-d view of one of ``spec.runs``."""
        return self.buffer[run.start : run.stop].view(DTYPES[run.dtype])

    @property
    def digest(self) -> str:
        """32 hex digits that identify spec and values (XXH3-128 of the spec's digest and the buffer)."""
        if self._digest:
            return self._digest
        state = self.spec.running_digest()
        state.update(self.buffer.data)
        found: str = state.hexdigest()
        if self._digest is not None:
            self._digest = found
        return found

    def __getitem__(self, name: str) -> Array:
        start, stop, dtype, shape = self.spec.places[name]
        return self.buffer[start:stop].view(dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.spec.places)

    def __len__(self) -> int:
        return len(self.spec.places)

    def __repr__(self) -> str:
        return f"Model({len(self)} tensors, {self.spec.num_elements} parameters, {self.spec.num_bytes} bytes)"


def _saved_order(value: str | None) -> list[str]:
    """Names in the order of the saved model; empty where the file was written by other software."""
    names = json.loads(value) if value else []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _shared_buffer(spec: ModelSpec, arrays: Arrays) -> Array | None:
    """The buffer that all arrays are views of, in the layout of ``spec``; None if there is no such buffer."""
    root, address = None, 0
    for name, (start, stop, dtype, _) in spec.places.items():
        array = arrays[name]
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        if root is None:
            root, address = base, base.ctypes.data
        if base is not root or not array.flags.c_contiguous or array.dtype != dtype:
            return None
        if stop > start and array.ctypes.data != address + start:
            return None
    if root is None or root.dtype != np.uint8 or root.ndim != 1 or root.nbytes != spec.num_bytes:
        return None
    return root
