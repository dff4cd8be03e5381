"""``broker-fl demo``: the digits federation, beside one learner alone and central training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import click
from rich.console import Console
from rich.table import Table

import broker_fl
from broker_fl.apps import App, load_app
from broker_fl.cli import options
from broker_fl.cli.command import Embedded
from broker_fl.cli.run import RunOptions, finish, run_app, seed_generators
from broker_fl.errors import SettingError
from broker_fl.model import Arrays

EXAMPLE = Path("examples") / "digits.py"
Scores = Mapping[str, float]


@click.command(cls=Embedded)
@click.option(
    "--app",
    metavar="APP",
    help="Another app with test_metrics, alone and central_training.  [default: examples/digits.py]",
)
@click.option(
    "--learners", type=click.IntRange(2), default=10, show_default=True, metavar="N", help="How many."
)
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, metavar="R", help="Rounds.")
@options.workers
@options.out
@options.live
def demo(app: str | None, learners: int, rounds: int, **given: Any) -> None:
    """Train on handwritten digits that ten learners hold, unevenly; then compare with training alone."""
    seed_generators(0)
    example = load_app(app or str(find_example()))
    chosen = RunOptions(learners=learners, rounds=rounds, job=None, parameters={}, seed=None, **given)
    ran = run_app(example, chosen)
    if ran.finished.state == "done":
        Console().print(comparison(example, ran.model, learners, rounds))
    finish(ran)


def find_example() -> Path:
    """The example's file, in the working directory or in the checkout that this package is run from.

    Raises:
        SettingError: this is an installed package, without examples.
    """
    for root in (Path(), Path(broker_fl.__file__).resolve().parent.parent):
        if (root / EXAMPLE).is_file():
            return root / EXAMPLE
    raise SettingError(f"{EXAMPLE} is not here: run the demo from a checkout of the project, or give --app")


def comparison(app: App, model: Arrays, learners: int, rounds: int) -> Table:
    """Metrics on the test set: one learner alone (mean and best), the federation, all data together."""
    test = _function(app, "test_metrics")
    alone = [_scores(test(_function(app, "alone")(index, learners, rounds))) for index in range(learners)]
    rows = {
        f"one learner alone, mean of {learners}": _mean(alone),
        "one learner alone, the best": max(alone, key=lambda scores: scores["accuracy"]),
        "the federation": _scores(test(model)),
        "central training, all data in one place": _scores(test(_function(app, "central_training")(rounds))),
    }
    table = Table(title="On held-out test data", title_justify="left", title_style="bold")
    table.add_column("trained by")
    names = list(next(iter(rows.values())))
    for name in names:
        table.add_column(name, justify="right")
    for label, scores in rows.items():
        style = "bold green" if label == "the federation" else None
        table.add_row(label, *(f"{scores[name]:.3f}" for name in names), style=style)
    return table


def _function(app: App, name: str) -> Callable[..., Any]:
    function = getattr(app.module, name, None)
    if not callable(function):
        raise SettingError(f"{app.target} has no function {name}, so there is nothing to compare with")

    def explained(*args: object) -> Any:
        with app.code.explained(f"{name}()"):
            return function(*args)

    return explained


def _scores(given: object) -> Scores:
    return cast("Scores", given)


def _mean(all_scores: list[Scores]) -> Scores:
    return {name: sum(scores[name] for scores in all_scores) / len(all_scores) for name in all_scores[0]}
