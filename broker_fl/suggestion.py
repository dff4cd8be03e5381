"""What an unknown name may have been meant to be."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant; None if none is near."""
    return next(iter(get_close_matches(given, sorted(known), n=1, cutoff=0.7)), None)


def expected_one_of(given: str, known: Iterable[str]) -> str:
    """The second half of an error message: the nearest known name, and all that are allowed."""
    names = sorted(known)
    near = nearest(given, names)
    meant = f"did you mean {near!r}? " if near is not None else ""
    return f"{meant}allowed are {', '.join(names)}" if names else "nothing is allowed here"
