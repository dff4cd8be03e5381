"""Events as TensorBoard's files (https://www.tensorflow.org/tensorboard): the curves of ``scalars.py``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from broker_fl.errors import SettingError
from broker_fl.record.closing import Closing
from broker_fl.record.scalars import Curves, settings_of
from broker_fl.wire import events as ev

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

FLUSH_S = 5
"""A job that is watched is at most so far behind in TensorBoard."""


class TensorBoardSink(Closing):
    """Writes a job to ``directory/<job>``: curves, how long learners had their tasks, and the settings.

    A job that is there already is written beside it, to ``<job>-2``, ``<job>-3``, …
    """

    def __init__(self, directory: str | Path) -> None:
        """Nothing is written before the first event.

        Raises:
            SettingError: tensorboardX is not installed.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise SettingError(
                f"TensorBoard's files need {error.name}, which is not installed: "
                "pip install 'broker-fl[tensorboard]'"
            ) from error
        self._new_writer = SummaryWriter
        self._directory = Path(directory)
        self._curves = Curves()
        self._writer: SummaryWriter | None = None

    def write(self, event: ev.Event) -> None:
        """Add what the event says.

        Raises:
            OSError: the folder cannot be made or written.
        """
        writer = self._writer = self._writer or self._open(event.job)
        for point in self._curves.of(event):
            writer.add_scalar(point.name, point.value, point.step, walltime=point.time_s)
        match event:
            case ev.JobSubmitted():
                lines = [f"| {name} | {value} |" for name, value in settings_of(event).items()]
                table = "\n".join(["| setting | value |", "|---|---|", *lines])
                writer.add_text("job", table, 0, walltime=event.time_s)
            case ev.VersionCommitted():
                if len(times := self._curves.task_seconds(event)) > 1:
                    writer.add_histogram("task/seconds", times, event.version, walltime=event.time_s)
            case _:
                pass

    def close(self) -> None:
        """Write what is still in memory."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, job: str) -> SummaryWriter:
        path, number = self._directory / job, 1
        while path.exists():
            number += 1
            path = self._directory / f"{job}-{number}"
        path.mkdir(parents=True)
        return self._new_writer(str(path), flush_secs=FLUSH_S)
