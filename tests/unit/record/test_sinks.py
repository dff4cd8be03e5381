"""Experiment trackers: what was written is read back with TensorBoard and MLflow themselves."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from broker_fl.errors import SettingError
from broker_fl.record.mlflow import MlflowSink
from broker_fl.record.scalars import Curves
from broker_fl.record.sinks import Background, EventSink
from broker_fl.record.tensorboard import TensorBoardSink
from broker_fl.wire import events as ev
from tests.unit.record.asynchronous import asynchronous_events, paced_events
from tests.unit.record.events import START_S, fake_events

EVENTS = fake_events(num_rounds=4)


def write_all(sink: EventSink, events: list[ev.Event]) -> None:
    for event in events:
        sink.write(event)
    sink.close()


def evaluations(metric: str) -> dict[int, float]:
    return {
        event.version: event.metrics[metric] for event in EVENTS if isinstance(event, ev.VersionEvaluated)
    }


# ---------------------------------------------------------------- TensorBoard


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """TensorBoard's reader. Without this it would load TensorFlow to read files, which takes seconds."""
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", ModuleType("notf"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kinds = ("scalars", "histograms", "tensors")  # 0: of these keep all

    def reader(path: Path) -> Any:
        found = EventAccumulator(str(path), size_guidance=dict.fromkeys(kinds, 0))
        found.Reload()
        return found

    return reader


def test_tensorboard_reads_every_curve_of_a_job(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    write_all(TensorBoardSink(tmp_path), EVENTS)
    board = read(tmp_path / "digits-7f3a")
    points = board.Scalars("evaluation/accuracy")
    assert {point.step: point.value for point in points} == pytest.approx(evaluations("accuracy"))
    assert [point.wall_time for point in points] == pytest.approx(
        [event.time_s for event in EVENTS if isinstance(event, ev.VersionEvaluated)]
    )
    low, high = (board.Scalars(f"evaluation_{end}/accuracy") for end in ("min", "max"))
    assert all(a.value < p.value < b.value for a, p, b in zip(low, points, high, strict=True))
    commits = [event for event in EVENTS if isinstance(event, ev.VersionCommitted)]
    assert [point.value for point in board.Scalars("round/seconds")] == pytest.approx(
        [event.round_s for event in commits]
    )
    assert [point.step for point in board.Scalars("training/loss")] == [1, 2, 3, 4]
    assert [point.step for point in board.Histograms("task/seconds")] == [1, 2, 3, 4]
    (text,) = board.Tensors("job/text_summary")
    assert "| protocol.quorum | 0.7 |" in text.tensor_proto.string_val[0].decode()


def test_tensorboard_has_staleness_and_memory_where_there_are_any(
    tmp_path: Path, read: Callable[[Path], Any]
) -> None:
    events = asynchronous_events(num_versions=10)
    write_all(TensorBoardSink(tmp_path), events)
    write_all(TensorBoardSink(tmp_path), EVENTS)
    without, board = read(tmp_path / "digits-7f3a").Tags()["scalars"], read(tmp_path / "async-1")
    names = {"round/staleness", "memory/controller_bytes", "memory/learners_bytes"}
    assert names <= set(board.Tags()["scalars"])
    assert not names & set(without)
    staleness = [event.staleness for event in events if isinstance(event, ev.UpdateFolded)]
    assert [point.value for point in board.Scalars("round/staleness")] == staleness
    sent = sum(event.num_bytes for event in events if isinstance(event, ev.TaskSent))
    assert 0 < board.Scalars("traffic/sent_bytes")[-1].value <= sent


def test_a_job_that_is_watched_twice_is_not_mixed_with_itself(tmp_path: Path) -> None:
    for _ in range(2):
        write_all(TensorBoardSink(tmp_path), EVENTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits-7f3a", "digits-7f3a-2"]


def test_events_that_come_twice_make_one_point() -> None:
    curves = Curves()
    points = [point for event in EVENTS for _ in range(2) for point in curves.of(event)]
    assert len({(point.name, point.step) for point in points}) == len(points)


# ---------------------------------------------------------------- MLflow


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # files are enough for a test
    return (tmp_path / "mlruns").as_uri()


def runs(store: str, experiment: str = "digits") -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def curve(store: str, run: Any, name: str) -> list[tuple[int, float, int]]:
    from mlflow.tracking import MlflowClient

    points = MlflowClient(tracking_uri=store).get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.value, point.timestamp) for point in points)


def test_mlflow_reads_settings_curves_and_the_end_of_a_job(store: str) -> None:
    write_all(MlflowSink(store), EVENTS)
    (run,) = runs(store)
    assert (run.info.run_name, run.info.status) == ("digits-7f3a", "FINISHED")
    assert (run.info.start_time, run.info.end_time) == (START_S * 1000, round(EVENTS[-1].time_s * 1000))
    assert (run.data.params["protocol.quorum"], run.data.params["rule.name"]) == ("0.7", "fedavg")
    found = curve(store, run, "evaluation/accuracy")
    assert {step: value for step, value, _ in found} == pytest.approx(evaluations("accuracy"))
    times = [round(event.time_s * 1000) for event in EVENTS if isinstance(event, ev.VersionEvaluated)]
    assert [time_ms for *_, time_ms in found] == times


@pytest.mark.parametrize(("state", "status"), [("stopped", "KILLED"), ("failed", "FAILED")])
def test_mlflow_knows_a_job_that_was_not_done(store: str, state: Any, status: str) -> None:
    end = EVENTS[-1].model_copy(update={"state": state, "reason": "the disk is full"})
    write_all(MlflowSink(store, "trials"), [*EVENTS[:-1], end])
    (run,) = runs(store, "trials")
    assert (run.info.status, run.data.tags["broker_fl.reason"]) == (status, "the disk is full")


def test_several_jobs_are_runs_of_one_experiment(store: str) -> None:
    write_all(MlflowSink(store), EVENTS)
    write_all(MlflowSink(store), asynchronous_events(num_versions=3))
    write_all(MlflowSink(store), paced_events(num_rounds=1))
    assert sorted(run.info.run_name for run in runs(store)) == ["async-1", "digits-7f3a", "paced-1"]


def test_metrics_that_learners_name_as_they_like_do_not_end_the_run(store: str) -> None:
    names = ["../../x", "a\nb", "/etc/passwd", "x" * 128, "größe €", ".", "a//b"]
    strange = ev.VersionEvaluated(
        job="digits-7f3a",
        round=0,
        version=0,
        metrics=dict.fromkeys(names, math.nan),
        num_learners=1,
        num_examples=1,
    )
    write_all(MlflowSink(store), [EVENTS[0], strange, EVENTS[-1]])
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    assert len([name for name in run.data.metrics if name.startswith("evaluation")]) == len(names)


# ---------------------------------------------------------------- whatever fails


class Broken:
    """Fails at the third event."""

    def __init__(self) -> None:
        self.seen: list[ev.Event] = []
        self.closed = False

    def write(self, event: ev.Event) -> None:
        self.seen.append(event)
        if len(self.seen) == 3:
            raise ConnectionError("the tracker\n is gone")

    def close(self) -> None:
        self.closed = True


def test_a_sink_that_fails_is_told_of_once_and_gets_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    broken = Broken()
    with caplog.at_level(logging.WARNING), Background(broken, "my tracker") as sink:
        for event in EVENTS:
            sink.write(event)
    assert len(broken.seen) == 3
    (record,) = caplog.records
    assert record.getMessage() == (
        "my tracker gets no more events of this job, which goes on: ConnectionError: the tracker is gone"
    )


def test_a_sink_that_is_stuck_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    released = threading.Event()

    class Stuck:
        def write(self, event: ev.Event) -> None:
            released.wait()

        def close(self) -> None:
            """Is never called."""

    sink = Background(Stuck(), "my tracker", close_timeout_s=0.05)
    for event in EVENTS:
        sink.write(event)
    with caplog.at_level(logging.WARNING):
        sink.close()
        sink.close()
    released.set()
    (record,) = caplog.records
    assert "did not take them within 0.05 s" in record.getMessage()


def test_a_sink_in_the_background_gets_every_event_in_order_and_is_closed() -> None:
    seen: list[ev.Event] = []
    closed = []

    class Kept:
        def write(self, event: ev.Event) -> None:
            seen.append(event)

        def close(self) -> None:
            closed.append(len(seen))

    with Background(Kept(), "kept") as sink:
        for event in EVENTS:
            sink.write(event)
    assert seen == EVENTS
    assert closed == [len(EVENTS)]


@pytest.mark.parametrize(
    ("make", "package", "extra"),
    [(TensorBoardSink, "tensorboardX", "tensorboard"), (MlflowSink, "mlflow.tracking", "mlflow")],
)
def test_without_the_extra_the_error_says_how_to_get_it(
    make: Callable[[str], object], package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingError, match=rf"pip install 'broker-fl\[{extra}\]'"):
        make("somewhere")


def test_trackers_are_imported_only_by_who_asks_for_them() -> None:
    code = (
        "import sys, broker_fl.record.tensorboard, broker_fl.record.mlflow, broker_fl.cli.run;"
        "print([m for m in ('tensorboardX', 'mlflow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
