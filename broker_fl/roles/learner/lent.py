"""The model that a learner's own code is given, and whether that code has let go of it again.

NumPy cannot take back an array that may be written to. But each view of a buffer, and whatever was made of a
view, refers to the buffer, and CPython counts references exactly: if there are as many as before, nobody else
can write to it any more.
"""

from __future__ import annotations

import sys

from broker_fl.model import Model


class Lent:
    """A model whose buffer is nobody else's, made before its arrays are given away."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._num_references = self._count()

    @property
    def is_back(self) -> bool:
        """Whether nothing refers to the buffer but what did so before."""
        return self._count() <= self._num_references

    def _count(self) -> int:
        return sys.getrefcount(self.model.buffer)
