"""``--tensorboard`` and ``--mlflow``: a job that is run or watched, in trackers that people have already."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import click

from broker_fl.cli import options
from broker_fl.record.sinks import Background
from broker_fl.wire.events import Event

F = TypeVar("F", bound=Callable[..., Any])


def trackers(command: F) -> F:
    """The options; ``tracking`` takes their values."""
    command = click.option(
        "--mlflow",
        metavar="URI",
        callback=options.not_on_the_command_line,
        help="Also make a run in MLflow: http://HOST:PORT, or another URI of it.",
    )(command)
    return click.option(
        "--tensorboard", metavar="DIR", help="Also write TensorBoard's files, to a folder of the job in DIR."
    )(command)


@contextmanager
def tracking(*, tensorboard: str | None, mlflow: str | None) -> Iterator[Callable[[Event], None]]:
    """To be called with each event, for the trackers that were asked for; of one that fails is told once.

    Raises:
        SettingError: a tracker's package is not installed.
    """
    with ExitStack() as stack:
        sinks = []
        if tensorboard:
            from broker_fl.record.tensorboard import TensorBoardSink

            sinks.append(Background(TensorBoardSink(tensorboard), f"TensorBoard in {tensorboard}"))
            stack.enter_context(sinks[-1])
        if mlflow:
            from broker_fl.record.mlflow import MlflowSink

            sinks.append(Background(MlflowSink(mlflow), f"MLflow at {mlflow}"))
            stack.enter_context(sinks[-1])

        def write(event: Event) -> None:
            for sink in sinks:
                sink.write(event)

        yield write
