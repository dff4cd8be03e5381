"""Tables and plots that all questions share."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.questions import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, ALSO_OURS, THEIRS, OTHERS, MUTED = "#1f6feb", "#79b8ff", "#d1660a", "#8250df", "#57606a"
BARS = (OURS, THEIRS, OTHERS, MUTED)
MARKERS = "osD^v<>"
Series = Mapping[str, Sequence[tuple[float, float]]]
"""Points by name."""


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(str(value) for value in row)} |" for row in rows]
    return "\n".join(lines)


def seconds(value: float) -> str:
    """With the digits that mean something: ``0.033``, ``1.25``, ``15.2``."""
    digits = 3 if value < 1 else 2 if value < 10 else 1
    return f"{value:.{digits}f}"


def times(value: float) -> str:
    """A ratio, as ``0.85×``, ``3.4×`` or ``120×``."""
    return f"{value:.{0 if value >= 20 else 1 if value >= 2 else 2}f}×"


def spread(values: Sequence[float]) -> str:
    """Median and, in brackets, least and most, in seconds; of one value itself."""
    middle = seconds(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({seconds(min(values))}–{seconds(max(values))})"


def spread_of_times(values: Sequence[float]) -> str:
    """Median and, in brackets, least and most, as ratios."""
    return f"{times(statistics.median(values))} ({times(min(values))}–{times(max(values))})"


def at_most(value: float, wanted: float) -> str:
    """``≤ 2.5×, missed``."""
    return f"≤ {wanted:g}×, {'reached' if value <= wanted else 'missed'}"


def verdict(wanted: str, reached: Sequence[tuple[str, bool]]) -> str:
    """A sentence on what was wanted: by what it is reached, and by what missed; empty without either."""
    if not reached:
        return ""
    missed = [name for name, is_reached in reached if not is_reached]
    good = [name for name, is_reached in reached if is_reached]
    parts = [f"reached by {', '.join(good)}"] * bool(good) + [f"missed by {', '.join(missed)}"] * bool(missed)
    return f"Wanted: {wanted}; {'; '.join(parts)}."


def size(num_parameters: int) -> str:
    """``100k``, ``10M``."""
    for unit, suffix in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if num_parameters >= unit and num_parameters % unit == 0:
            return f"{num_parameters // unit}{suffix}"
    return str(num_parameters)


def cell_name(cell: Cell) -> str:
    """``10 × 1M``."""
    return f"{cell[0]} × {size(cell[1])}"


def plot_lines(
    path: Path,
    panels: Mapping[str, tuple[Series, Series]],
    labels: tuple[str, str],
    *,
    guide: str = "",
) -> None:
    """Panels side by side on logarithmic axes: our lines, then theirs, each named at the legend.

    They share the vertical axis, unless its label is empty: then each panel's title says what is on its own.
    ``guide`` names a dotted line in each panel that grows as what is below, through the last point of the
    first line.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    with mpl.rc_context({"svg.hashsalt": "benchmarks", "font.size": 10, "text.parse_math": False}):
        figure = Figure(figsize=(3.6 * len(panels) + 0.4, 3.9), layout="constrained")
        shared = bool(labels[1])
        all_axes: list[Axes] = list(figure.subplots(1, len(panels), sharey=shared, squeeze=False)[0])
        for axes, (title, (ours, theirs)) in zip(all_axes, panels.items(), strict=True):
            for colour, group in ((OURS, ours), (THEIRS, theirs)):
                for marker, (name, points) in zip(MARKERS, group.items(), strict=False):
                    xs, ys = zip(*sorted(points), strict=True)
                    style = "-" if marker == MARKERS[0] else "--"
                    axes.plot(xs, ys, marker + style, color=colour, label=name, markersize=5)
            axes.set(xscale="log", yscale="log", title=title, xlabel=labels[0])
            if guide:
                _draw_guide(axes, next(iter(ours.values())), guide)
            ticks = sorted({x for group in (ours, theirs) for points in group.values() for x, _ in points})
            axes.set_xticks(ticks, [f"{tick:,g}" if tick < 1e6 else f"{tick:g}" for tick in ticks])
            axes.xaxis.set_minor_formatter(NullFormatter())
            low, high = axes.get_ylim()
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            # Between few powers of ten, others are named, too.
            names = NullFormatter() if high > 20 * low else FuncFormatter(lambda y, _: f"{y:g}")
            axes.yaxis.set_minor_formatter(names)
            axes.grid(visible=True, which="major", color="#d8dee4", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        all_axes[0].set_ylabel(labels[1])
        handles = {
            label: h for axes in all_axes for h, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
        _save(figure, path)


def _draw_guide(axes: Axes, points: Sequence[tuple[float, float]], name: str) -> None:
    """A line of slope 1, within what the panel shows already."""
    low, high = axes.get_ylim()
    (first, _), (last, top) = min(points), max(points)
    axes.plot((first, last), (top * first / last, top), ":", color=MUTED, label=name, linewidth=1.2)
    axes.set_ylim(low, high)


def plot_bars(
    path: Path, groups: Mapping[str, Mapping[str, float]], label: str, colours: Sequence[str] = BARS
) -> None:
    """Groups of horizontal bars on a logarithmic axis, the value at the end of each; the first name is
    ours.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    colour_of = dict(zip(names, colours, strict=False))
    lines = [(group, name, value) for group, bars in groups.items() for name, value in bars.items()]
    with mpl.rc_context({"svg.hashsalt": "benchmarks", "font.size": 10, "text.parse_math": False}):
        figure = Figure(figsize=(7.6, 0.9 + 0.3 * len(lines) + 0.15 * len(groups)), layout="constrained")
        axes = figure.subplots()
        position, ticks = 0.0, []
        for group, bars in groups.items():
            ticks.append((position + (len(bars) - 1) / 2, group))
            for name, value in bars.items():
                first = name not in axes.get_legend_handles_labels()[1]
                axes.barh(position, value, 0.85, color=colour_of[name], label=name if first else None)
                axes.text(value * 1.06, position, seconds(value), va="center", color="#24292f", fontsize=9)
                position += 1
            position += 0.6
        values = [value for _, _, value in lines]
        axes.set(xscale="log", xlabel=label, xlim=(min(values) / 3, max(values) * 3))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper center", ncols=4, frameon=False)
        _save(figure, path)


def _save(figure: object, path: Path) -> None:
    from matplotlib.figure import Figure

    assert isinstance(figure, Figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
