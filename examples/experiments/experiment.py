"""One experiment as a program: run it, keep its figures as JSON, draw them."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .plotting import save

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
QUICK_PICTURES = Path("runs") / "experiments-quick"
Figures = dict[str, Any]
"""Numbers as JSON has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A question, and what answers it."""

    name: str
    about: str
    run: Callable[[bool], Figures]
    """Whether to be quick: few rounds, to see that it works."""
    draw: Callable[[Figures], Figure]
    section: Callable[[Figures], str]
    """Its part of ``docs/experiments.md``."""
    sentence: Callable[[Figures], str]
    """The finding, for whoever reads one sentence."""

    def figures(self, folder: Path = PICTURES) -> Figures:
        """What a run has left there."""
        figures: Figures = json.loads(self._path(folder, "json").read_text("utf-8"))
        return figures

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """The command line."""
        parser = argparse.ArgumentParser(
            description=self.about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--quick", action="store_true", help="few rounds, to see that it works")
        parser.add_argument(
            "--redraw", action="store_true", help="do not run, draw what an earlier run found"
        )
        parser.add_argument(
            "--out", type=Path, help="folder of the picture and the figures (docs/pictures; if quick, runs/)"
        )
        parser.add_argument("--format", default="svg", choices=["svg", "png"], help="of the picture")
        given = parser.parse_args(arguments)
        folder = given.out or (QUICK_PICTURES if given.quick else PICTURES)
        folder.mkdir(parents=True, exist_ok=True)
        if not given.redraw:
            began = time.monotonic()
            figures = _rounded(self.run(given.quick))
            self._path(folder, "json").write_text(json.dumps(figures) + "\n", "utf-8")
            print(f"took {time.monotonic() - began:.0f} s")
        figures = self.figures(folder)
        save(lambda: self.draw(figures), self._path(folder, given.format))
        print(self.sentence(figures))
        print(self._path(folder, given.format))

    def _path(self, folder: Path, suffix: str) -> Path:
        return folder / f"experiment-{self.name}.{suffix}"


def _rounded(value: Any) -> Any:
    """No figure is known to more than four decimals."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
