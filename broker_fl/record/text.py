"""Numbers and foreign text as they are shown to people: in the report and in the live view."""

from __future__ import annotations

import math
import unicodedata

_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def one_line(text: str, limit: int = 200) -> str:
    """Text from outside, fit to be shown: one line of at most ``limit`` characters.

    Line breaks and tabs become blanks; other control characters (terminal escapes, direction overrides)
    become ``�``.
    """
    shown = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(_visible(char) for char in shown)


def _visible(char: str) -> str:
    if char in "\n\r\t\v\f\u2028\u2029":
        return " "
    return (
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn") else char
    )


def seconds(value: float | None) -> str:
    """A duration with its unit: ``0 s``, ``42 ms``, ``3.17 s``, ``12 min 05 s``, ``3 h 20 min``."""
    if value is None or not math.isfinite(value):
        return "–"
    if value < 0.000_5:
        return "0 s"
    if value < 0.999_5:
        return f"{value * 1000:.3g} ms"
    if value < 59.95:
        return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s"
    if value < 3599.5:
        return f"{round(value) // 60} min {round(value) % 60:02d} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(num_bytes: float) -> str:
    """Bytes in decimal units, three digits: ``640 B``, ``1.25 MB``."""
    for unit in _BYTE_UNITS:
        if num_bytes < 999.5 or unit == _BYTE_UNITS[-1]:
            break
        num_bytes /= 1000
    return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.3g} {unit}"


def number(value: float | None) -> str:
    """A metric: four significant digits, ``–`` where there is none."""
    if value is None or math.isnan(value):
        return "–"
    if value == int(value) and abs(value) < 1e6 if math.isfinite(value) else False:
        return f"{value:.0f}"
    return f"{value:.4g}" if abs(value) < 1e-3 or abs(value) >= 1e6 else f"{value:.{_decimals(value)}f}"


def _decimals(value: float) -> int:
    return max(0, 3 - math.floor(math.log10(abs(value)))) if abs(value) >= 1 else 4


def count(value: int) -> str:
    """A whole number with thousands set apart by a thin space."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def plural(value: int, noun: str) -> str:
    """``1 learner``, ``2 learners``."""
    return f"{count(value)} {noun}{'' if value == 1 else 's'}"
