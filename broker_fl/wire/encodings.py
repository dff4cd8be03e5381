"""Encodings: what a model's buffer looks like on the wire.

``raw`` is the buffer itself. ``float32``, ``float16`` and ``bfloat16`` narrow each wider floating-point
tensor to that type; integer, boolean and already narrower tensors stay as they are, and the job's
``buffers``, whose statistics may be spoilt by what weights can bear. The encoded buffer has
the layout of a model whose spec names the narrower types (``model/spec.py``). ``int8`` and ``topk/N`` are in
``coarse.py``.

To add one: a class with what ``Encoding`` asks for, its name in ``ENCODINGS`` or ``encoding``, and its
description in ``schemas/README.md``.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import ClassVar, Protocol

from broker_fl.errors import FrameRefused
from broker_fl.model import Array, Model, ModelSpec
from broker_fl.wire.coarse import MAX_TOPK, BlockInt8, TopK
from broker_fl.wire.frames import brief
from broker_fl.wire.narrow import Narrowed, Raw


class Encoding(Protocol):
    """A way to write a model's buffer."""

    coarse: ClassVar[bool]
    """Whether updates are sent in it as changes only, with error feedback."""
    of_versions: ClassVar[bool]
    """Whether a version of the model may be sent in it."""

    def keeping(self, names: Collection[str]) -> Encoding:
        """The same that leaves these tensors as they are."""
        ...

    def num_bytes(self, spec: ModelSpec) -> int:
        """Length of the encoded buffer of a model that looks like ``spec``."""
        ...

    def encode(self, model: Model) -> Array:
        """The encoded buffer: uint8, 1-d; it may be the model's own."""
        ...

    def overflow(self, model: Model) -> str | None:
        """A tensor with a finite value that would be too large when it is decoded; None if there is none."""
        ...

    def decode(self, buffer: Array, spec: ModelSpec) -> Model:
        """The model again; it may use ``buffer`` as its own.

        Raises:
            FrameRefused: a boolean that is neither 0 nor 1, or what this encoding never writes.
        """
        ...


ENCODINGS: dict[str, Encoding] = {
    "raw": Raw(),
    "float32": Narrowed("float32"),
    "float16": Narrowed("float16"),
    "bfloat16": Narrowed("bfloat16"),
    "int8": BlockInt8(),
}
"""Those without a parameter."""
TOPK_PATTERN = r"topk/([1-9][0-9]{0,6})"
NAMES = (*ENCODINGS, "topk/N")
"""For people."""


def encoding(name: str, kept: Collection[str] = ()) -> Encoding:
    """The encoding of that name; it leaves the tensors that are ``kept`` as they are.

    Raises:
        FrameRefused: no such encoding is known here.
    """
    if (found := ENCODINGS.get(name) or _topk(name)) is None:
        raise FrameRefused(f"encoding {brief(name)} is not one of {', '.join(NAMES)}")
    return found.keeping(kept) if kept else found


@lru_cache(maxsize=64)
def _topk(name: str) -> TopK | None:
    match = re.fullmatch(TOPK_PATTERN, name)
    one_in = int(match[1]) if match else 0
    return TopK(one_in=one_in) if 2 <= one_in <= MAX_TOPK else None
