"""An example of every kind, for the golden vectors and for tests."""

from __future__ import annotations

import math
import zlib
from typing import Any

from broker_fl.wire import events as e
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import checksum
from broker_fl.wire.job import JobSpec, Termination, Transfer
from broker_fl.wire.protocols import Synchronous
from broker_fl.wire.selectors import SelectRandom

PAYLOAD = b"forty-two bytes of a model, or of an update"


def examples() -> dict[str, m.Message]:
    """One message of each kind, every field in use, by a name for the case; and a few that are special."""
    return (
        _learner_examples()
        | _group_examples()
        | _update_examples()
        | _task_examples()
        | _driver_examples()
        | _reply_examples()
        | {event.KIND: event for event in _events()}
    )


_SPEC = (("dense.weight", "float32", (2, 3)), ("dense.bias", "float32", (3,)), ("steps", "int64", ()))
TASK = m.TaskRef(job="digits-1f", round=3, attempt=1)
_MANIFEST = m.ModelManifest(
    version=3,
    spec=_SPEC,
    spec_digest="0123456789abcdef0123456789abcdef",
    digest="00112233445566778899aabbccddeeff",
    encoding="float16",
    num_bytes=32,
    chunk_bytes=1 << 20,
)
_STATUS = m.TaskStatus(task=TASK, phase="training", progress=0.25)
_SPEC_OF_JOB = JobSpec(
    name="digits",
    protocol=Synchronous(quorum=0.75, deadline_s=60.0, min_learners=2, max_wait_s=600.0, max_retries=1),
    selector=SelectRandom(fraction=0.5, seed=7),
    termination=Termination(rounds=10, wall_clock_s=3600.0),
    parameters={"epochs": 1, "learning_rate": 0.1, "optimizer": "sgd", "nesterov": False, "decay": None},
    transfer=Transfer(encoding="float16", chunk_bytes=1 << 20),
)
_METRICS = {"accuracy": 0.875, "loss": 0.5}
_GROUP: dict[str, Any] = {
    "group": "host-1",
    "share": "8c1f",
    "learners": ("host-1-0", "host-1-1"),
    "num_examples": (120, 80),
    "num_steps": (15,),
    "metrics": {"loss": (0.5, 0.25)},
    "evaluation": {"accuracy": (0.75, 0.875)},
    "evaluation_examples": (40,),
    "train_s": (4.25, 2.5),
    "receive_s": 0.125,
    "peak_memory_bytes": 300_000_000,
}
_TIMINGS = m.Timings(receive_s=0.125, queue_s=0.0, evaluate_s=0.5, train_s=4.25)
_OF_JOB: dict[str, Any] = {"job": "digits-1f", "sequence": 5, "time_s": 1_700_000_000.5}
_COHORT = ("site-1", "site-2")


def _learner_examples() -> dict[str, m.Message]:
    who: dict[str, Any] = {"learner": "site-1", "session": "5f2e8a"}
    attributes: dict[str, str | int | float | bool | None] = {
        "region": "eu",
        "gpus": 1,
        "idle": True,
        "load": 0.5,
    }
    result = m.Result(
        learner="site-1",
        task=TASK,
        num_examples=120,
        num_steps=15,
        num_epochs=1.5,
        metrics=_METRICS,
        evaluation={"accuracy": 0.75},
        evaluation_examples=40,
        timings=_TIMINGS,
        peak_memory_bytes=300_000_000,
        update=m.UpdateManifest(
            spec_digest=_MANIFEST.spec_digest, encoding="float16", num_bytes=32, chunk_bytes=1 << 20
        ),
    )
    return {
        "join": m.Join(**who, attributes=attributes, software="broker_fl 0.1.0", tasks=(_STATUS,)),
        "heartbeat": m.Heartbeat(**who, tasks=(_STATUS,)),
        "leave": m.Leave(**who, reason="stopped"),
        "accepted": m.Accepted(learner="site-1", task=TASK, receive_s=0.125),
        "failed": m.Failed(learner="site-1", task=TASK, reason="ValueError: größer als erlaubt"),
        "result": result,
        "result of an evaluation": m.Result(
            learner="site-1", task=TASK, evaluation={"accuracy": 0.75}, evaluation_examples=40
        ),
        "result of a training that diverged": result.model_copy(
            update={"metrics": {"loss": math.nan, "norm": math.inf, "margin": -math.inf}}
        ),
    }


def _group_examples() -> dict[str, m.Message]:
    return {
        "group_join": m.GroupJoin(
            group="host-1",
            session="5f2e8a",
            members=("host-1-0", "host-1-1"),
            attributes={"region": "eu"},
            columns={"num_examples": (120, None)},
            software="broker_fl 0.1.0",
            tasks=(_STATUS.model_copy(update={"num_learners": 2}),),
        ),
        "group_result": m.GroupResult(
            **_GROUP,
            task=TASK,
            failed=("host-1-7",),
            reasons=("ValueError: größer als erlaubt",),
            update=m.UpdateManifest(
                spec_digest=_MANIFEST.spec_digest, form="sum", num_bytes=40, chunk_bytes=1 << 20
            ),
        ),
        "update_chunk of a group": m.UpdateChunk(
            learner="host-1",
            task=TASK,
            share="8c1f",
            index=0,
            count=1,
            encoding="raw",
            checksum=crc32(PAYLOAD),
        ),
    }


def _update_examples() -> dict[str, m.Message]:
    return {
        "update_chunk": m.UpdateChunk(
            learner="site-1", task=TASK, index=0, count=1, encoding="float16", checksum=crc32(PAYLOAD)
        ),
        "update_chunk with its result": m.UpdateChunk(
            learner="site-1",
            task=TASK,
            index=0,
            count=1,
            checksum=crc32(PAYLOAD),
            result=m.Result(
                learner="site-1",
                task=TASK,
                num_examples=1437,
                metrics={"loss": 0.25},
                update=m.UpdateManifest(num_bytes=len(PAYLOAD), chunk_bytes=1 << 20),
            ),
        ),
    }


def crc32(payload: bytes) -> str:
    """The checksum that every implementation has to know."""
    return f"crc32:{zlib.crc32(payload):08x}"


def _task_examples() -> dict[str, m.Message]:
    return {
        "welcome": m.Welcome(federation="hospitals", heartbeat_s=5.0),
        "rejoin": m.Rejoin(),
        "task": m.Task(
            task=TASK,
            model=_MANIFEST,
            parameters=_SPEC_OF_JOB.parameters,
            encoding="float16",
            chunk_bytes=1 << 20,
            inbox="controller-7",
            upload="on_request",
            deadline_s=60.0,
            terms=m.Terms(
                name="digits", driver="anna", rule="fedavg", protocol="synchronous", cohort=12, min_cohort=3
            ),
        ),
        "task to evaluate only": m.Task(task=TASK, model=_MANIFEST, train=False, inbox="controller-7"),
        "task that asks for changes": m.Task(
            task=TASK, model=_MANIFEST, form="changes", buffers=("dense.bias",), inbox="controller-7"
        ),
        "task of a group": m.Task(
            task=TASK, model=_MANIFEST, learners=("host-1-0", "host-1-1"), inbox="controller-7"
        ),
        "task with error feedback": m.Task(
            task=TASK, model=_MANIFEST, encoding="topk/100", form="changes", residual=2, inbox="controller-7"
        ),
        "model_chunk": m.ModelChunk(
            job="digits-1f",
            version=3,
            index=1,
            count=2,
            encoding="raw",
            checksum=checksum(memoryview(PAYLOAD)),
        ),
        "model_chunk with its task": m.ModelChunk(
            job="digits-1f",
            version=3,
            index=0,
            count=1,
            checksum=crc32(PAYLOAD),
            task=m.Task(task=TASK, model=_MANIFEST, inbox="controller-7", compact=True),
        ),
        "upload_request": m.UploadRequest(task=TASK, inbox="controller-8"),
        "cancel": m.Cancel(task=TASK, reason="the round closed without it"),
    }


def _driver_examples() -> dict[str, m.Message]:
    who: dict[str, Any] = {"driver": "driver-9", "request": "4b1d"}
    return {
        "submit": m.Submit(**who, job="digits-1f", spec=_SPEC_OF_JOB, model=_MANIFEST),
        "stop_job": m.StopJob(**who, job="digits-1f", reason="enough"),
        "submit, from a stored version": m.Submit(
            **who,
            job="digits-2f",
            spec=_SPEC_OF_JOB,
            parent=m.VersionRef(job="digits-1f", version=3),
        ),
        "pause_job": m.PauseJob(**who, job="digits-1f", reason="maintenance"),
        "resume_job": m.ResumeJob(**who, job="digits-1f", versions=1),
        "delete_job": m.DeleteJob(**who, job="digits-1f", reason="disk space"),
        "list_jobs": m.ListJobs(**who),
        "list_versions": m.ListVersions(**who, job="digits-1f"),
        "list_learners": m.ListLearners(**who),
        "read_events": m.ReadEvents(**who, job="digits-1f", after=17),
        "read_model": m.ReadModel(**who, job="digits-1f", version=3),
        "read_model, the newest": m.ReadModel(**who, job="digits-1f"),
    }


def _reply_examples() -> dict[str, m.Message]:
    job = m.JobSummary(
        job="digits-1f", name="digits", state="running", round=3, version=3, submitted_at=1_700_000_000.5
    )
    version = m.VersionSummary(
        version=3,
        num_bytes=48,
        num_parameters=10,
        digest=_MANIFEST.digest,
        committed_at=1_700_000_060.25,
        metrics=_METRICS,
    )
    learner = m.LearnerSummary(
        learner="site-1",
        attributes={"region": "eu"},
        software="broker_fl 0.1.0",
        last_seen_s=1.5,
        tasks=(_STATUS,),
    )
    event = e.JobResumed(
        job="digits-1f", sequence=18, time_s=1_700_000_061.0, round=3, version=3, epoch=8
    ).pack()
    return {
        "refused": m.Refused(request="4b1d", reason="there is no job 'digits-2f'"),
        "done": m.Done(request="4b1d", warnings=("'protocol.deadline_s' is not given",)),
        "submitted": m.Submitted(request="4b1d", job="digits-1f", inbox="controller-7"),
        "jobs": m.Jobs(request="4b1d", jobs=(job,)),
        "versions": m.Versions(request="4b1d", versions=(version,)),
        "learners": m.Learners(request="4b1d", learners=(learner,), last=False),
        "events": m.Events(request="4b1d", events=(event,), last=True),
        "event_batch": m.EventBatch(job="digits-1f", events=(event,)),
        "dead_letter": m.DeadLetter(
            source="bfl.hospitals.inbox.controller-7",
            routing_key="site-1.controller-7",
            reason="the body is no msgpack map",
            time_s=1_700_000_062.0,
            user="hospitals.learner.site-1",
            needs_account=True,
        ),
        "model_follows": m.ModelFollows(request="4b1d", job="digits-1f", model=_MANIFEST),
    }


def _events() -> tuple[e.Event, ...]:
    at = _OF_JOB
    return (
        e.JobSubmitted(**at, driver="driver-9", spec=_SPEC_OF_JOB, num_parameters=10, model_bytes=48),
        e.JobPaused(**at, reason="maintenance"),
        e.JobUnpaused(**at, versions=1),
        e.JobWaiting(**at, reason="1 learner is there, 2 are needed", num_learners=1, num_needed=2),
        e.JobResumed(**at, round=3, version=3, epoch=8),
        *_round_events(),
        *_attendance_events(),
        *_group_events(),
        e.JobFinished(
            **at, state="done", reason="10 rounds", version=10, rounds=10, duration_s=70.5, metrics=_METRICS
        ),
        e.JobDeleted(**at, reason="disk space"),
    )


def _round_events() -> tuple[e.Event, ...]:
    at: dict[str, Any] = {**_OF_JOB, "round": 3}
    one: dict[str, Any] = {**at, "learner": "site-1"}
    return (
        e.RoundStarted(**at, version=3, cohort=_COHORT, num_wanted=1, deadline_s=60.0),
        e.RoundRetried(**at, attempt=1, reason="1 of 2 delivered", replacements=("site-3",)),
        e.TransferProgress(**at, direction="up", num_bytes=300_000_000, total_bytes=2_000_000_000),
        e.TaskSent(**at, attempt=1, learners=_COHORT, num_bytes=1000, num_messages=4, send_s=0.01),
        e.TaskAccepted(**one, receive_s=0.125),
        e.TaskFinished(
            **one, num_examples=120, num_steps=15, metrics=_METRICS, evaluation=_METRICS, timings=_TIMINGS
        ),
        e.UpdateFolded(**one, weight=120.0, num_bytes=32, num_messages=1, upload_s=0.5, fold_s=0.01),
        e.TaskFailed(**one, reason="out of memory"),
        e.TaskLate(**one, reason="the round closed without it"),
        e.UpdateRefused(**one, reason="tensor 'dense.bias' holds NaN"),
        e.VersionEvaluated(**at, version=3, metrics=_METRICS, num_learners=2, num_examples=80),
        e.VersionCommitted(
            **at,
            version=4,
            digest=_MANIFEST.digest,
            contributors=_COHORT,
            total_weight=240.0,
            used={"site-1": 1.0, "site-2": 0.0},
            metrics=_METRICS,
            round_s=6.5,
            aggregate_s=0.02,
            store_s=0.03,
        ),
    )


def _attendance_events() -> tuple[e.Event, ...]:
    at: dict[str, Any] = {**_OF_JOB, "learner": "site-1"}
    return (
        e.LearnerExcluded(**at, round=3, num_failures=3, reason="out of memory"),
        e.LearnerJoined(**at, attributes={"region": "eu"}),
        e.LearnerLeft(**at, reason="stopped"),
        e.LearnerLost(**at, silent_s=20.5),
    )


def _group_events() -> tuple[e.Event, ...]:
    at: dict[str, Any] = {**_OF_JOB, "group": "host-1"}
    members = ("host-1-0", "host-1-1")
    return (
        e.GroupJoined(**at, learners=members, attributes={"region": "eu"}),
        e.GroupLeft(**at, learners=members, reason="stopped"),
        e.GroupLost(**at, learners=members, silent_s=20.5),
        e.GroupAccepted(**at, round=3, num_learners=2, receive_s=0.125),
        e.GroupFinished(**_OF_JOB, round=3, **_GROUP),
        e.GroupFolded(
            **at, round=3, share="8c1f", num_learners=2, weight=200.0, num_bytes=40, num_messages=1
        ),
        e.GroupMissed(**at, round=3, outcome="late", learners=members, reasons=("the round closed",)),
    )
