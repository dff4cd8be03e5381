"""Bytes of any length in a tensor of a fixed one: how a model travels that is no arrays, such as trees.

Layout: uint8, 1-d; the number of bytes as a little-endian uint64, the bytes, zeros up to the end.
"""

from __future__ import annotations

import numpy as np

from broker_fl.model import Array, ModelError

HEADER_BYTES = 8


def empty(capacity_bytes: int) -> Array:
    """A tensor that holds nothing, with room for so many bytes."""
    return np.zeros(HEADER_BYTES + capacity_bytes, np.uint8)


def write(data: bytes, tensor: Array) -> None:
    """Put ``data`` into ``tensor``, in place of what it holds.

    Raises:
        ModelError: it has no room for so many, or is no such tensor; nothing was changed.
    """
    capacity = _capacity(tensor)
    if len(data) > capacity:
        raise ModelError(f"{len(data)} bytes do not fit into a tensor with room for {capacity}")
    end = HEADER_BYTES + len(data)
    tensor[:HEADER_BYTES] = np.frombuffer(len(data).to_bytes(HEADER_BYTES, "little"), np.uint8)
    tensor[HEADER_BYTES:end] = np.frombuffer(data, np.uint8)
    tensor[end:] = 0


def read(tensor: Array) -> bytes:
    """The bytes that ``tensor`` holds.

    Raises:
        ModelError: it says that it holds more than it has room for, or is no such tensor.
    """
    capacity = _capacity(tensor)
    length = int.from_bytes(tensor[:HEADER_BYTES].tobytes(), "little")
    if length > capacity:
        raise ModelError(f"the tensor says that it holds {length} bytes, and has room for {capacity}")
    return tensor[HEADER_BYTES : HEADER_BYTES + length].tobytes()


def _capacity(tensor: Array) -> int:
    if tensor.dtype != np.uint8 or tensor.ndim != 1 or len(tensor) < HEADER_BYTES:
        raise ModelError(
            f"bytes are in a uint8 tensor of shape (n,) with n at least {HEADER_BYTES}, not in one of type "
            f"{tensor.dtype} and shape {tensor.shape}"
        )
    return len(tensor) - HEADER_BYTES
