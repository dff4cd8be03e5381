"""What an unknown name may have been meant to be."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def expected_one_of(given: str, known: Iterable[str]) -> str:
    """The second half of an error message: the nearest known name, and all that are allowed."""
    names = sorted(known)
    near = get_close_matches(given, names, n=1, cutoff=0.7)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"{meant}allowed are {', '.join(names)}" if names else "nothing is allowed here"
