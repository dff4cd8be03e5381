"""Figures of the experiments as Markdown and in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all but the first column are numbers."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def first_at(times_s: Sequence[float], values: Sequence[float], level: float) -> float | None:
    """When ``values`` first came to ``level``; None if never."""
    return next((time_s for time_s, value in zip(times_s, values, strict=True) if value >= level), None)


def last_before(times_s: Sequence[float], values: Sequence[float], until_s: float) -> float:
    """The newest value at a time; the first one if there was none before."""
    return [values[0], *(value for time_s, value in zip(times_s, values, strict=True) if time_s <= until_s)][
        -1
    ]


def seconds(value: float | None) -> str:
    """``1.3 s``, or a dash where it never came to that."""
    return "–" if value is None else f"{value:.1f} s"
