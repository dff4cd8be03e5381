"""Events as a run in MLflow (https://mlflow.org); the curves are those of ``scalars.py``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from broker_fl.errors import SettingError
from broker_fl.record.closing import Closing
from broker_fl.record.scalars import Curves, settings_of
from broker_fl.wire import events as ev

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

T = TypeVar("T")

DEFAULT_EXPERIMENT = "broker-fl"
MAX_PARAMETERS, MAX_METRICS = 100, 1_000
"""Of one request, as MLflow's REST interface has them."""
MAX_VALUE = 500
"""Characters of a parameter that every version of MLflow takes."""
MAX_NAME = 250
_STATUS = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_NOT_IN_NAMES = re.compile(r"[^\w\-. ]")


class MlflowSink(Closing):
    """Makes a run of a job, in an experiment that is called like the job file's ``name``, or ``experiment``.

    The job's settings are its parameters, its curves the metrics; a job that is done is ``FINISHED``, one
    that was stopped ``KILLED``.
    """

    def __init__(self, uri: str, experiment: str | None = None) -> None:
        """Nothing is sent before the first event.

        Args:
            uri: of the tracking server, ``http://…``, or whatever else the installed MLflow takes.
            experiment: made if it is not there.

        Raises:
            SettingError: MLflow is not installed.
        """
        # MLflow would tell its makers of each run. Whoever wants that sets the variable.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise SettingError(
                f"MLflow needs {error.name}, which is not installed: pip install 'broker-fl[mlflow]'"
            ) from error
        self._new_client = MlflowClient
        self._uri = uri
        self._experiment = experiment
        self._client: MlflowClient | None = None
        self._run = ""
        self._curves = Curves()

    def write(self, event: ev.Event) -> None:
        """Send what the event says; a version is one request.

        Raises:
            Exception: of MLflow, if the server does not answer or refuses.
        """
        from mlflow.entities import Metric

        client = self._client = self._client or self._new_client(tracking_uri=self._uri)
        if not self._run:
            self._begin(client, event)
        metrics = [
            Metric(_name(point.name), point.value, _ms(point.time_s), point.step)
            for point in self._curves.of(event)
        ]
        for some in _batches(metrics, MAX_METRICS):
            client.log_batch(self._run, metrics=some)
        if isinstance(event, ev.JobFinished):
            client.set_tag(self._run, "broker_fl.reason", event.reason[:MAX_VALUE])
            client.set_terminated(self._run, _STATUS[event.state], end_time=_ms(event.time_s))

    def close(self) -> None:
        """Nothing is open; the run of a job that has not ended stays ``RUNNING``."""

    def _begin(self, client: MlflowClient, event: ev.Event) -> None:
        from mlflow.entities import Param

        submitted = event if isinstance(event, ev.JobSubmitted) else None
        name = self._experiment or (submitted.spec.name if submitted else DEFAULT_EXPERIMENT)
        run = client.create_run(
            _experiment(client, name),
            start_time=_ms(event.time_s),
            run_name=event.job,
            tags={"broker_fl.job": event.job, "mlflow.source.name": "broker-fl"},
        )
        self._run = run.info.run_id
        if submitted is not None:
            settings = settings_of(submitted).items()
            parameters = [Param(_name(key), value[:MAX_VALUE]) for key, value in settings]
            for some in _batches(parameters, MAX_PARAMETERS):
                client.log_batch(self._run, params=some)


def _experiment(client: MlflowClient, name: str) -> str:
    if (found := client.get_experiment_by_name(name)) is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except Exception:
        # Somebody else may have made it in between.
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return str(found.experiment_id)


def _name(name: str) -> str:
    """A name that MLflow takes: learners choose those of their metrics."""
    parts = [_NOT_IN_NAMES.sub("_", part) for part in name.split("/", maxsplit=1)]
    return "/".join(part if part.strip(".") else "_" for part in parts)[:MAX_NAME]


def _ms(time_s: float) -> int:
    return round(time_s * 1000)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[first : first + size] for first in range(0, len(items), size))
