"""Events as an asynchronous job makes them, from a seed: fast and slow learners, stale updates."""

from __future__ import annotations

import heapq
import math
import random
from typing import Any

from broker_fl.wire import events as ev
from broker_fl.wire.job import JobSpec, Termination
from broker_fl.wire.messages import Timings
from broker_fl.wire.pacing import Aimd
from broker_fl.wire.protocols import Asynchronous
from broker_fl.wire.rules import FedAsync, FedBuff
from tests.unit.record.events import START_S, FakeJob

MODEL_BYTES = 407_080
MAX_STALENESS = 12


def asynchronous_events(
    *,
    num_learners: int = 8,
    num_versions: int = 40,
    buffer: int = 1,
    seed: int = 0,
    job: str = "async-1",
) -> list[ev.Event]:
    """A whole asynchronous job: learner 0 is ten times slower than the last; learner 2 fails at first."""
    return [
        event.stamped(n, event.time_s)
        for n, event in enumerate(_Job(num_learners, num_versions, buffer, seed, job).run(), 1)
    ]


class _Job:
    def __init__(self, num_learners: int, num_versions: int, buffer: int, seed: int, job: str) -> None:
        self.draw = random.Random(seed)
        self.job = job
        self.learners = [f"site-{index:02d}" for index in range(num_learners)]
        self.num_versions, self.buffer = num_versions, buffer
        self.version = 0
        self.events: list[ev.Event] = []
        self.moments: list[tuple[float, int, ev.Event]] = []
        self.held: list[ev.UpdateFolded] = []
        self.last_s = START_S
        self.tasks: dict[str, int] = {}
        self.open: dict[str, int] = {}

    def run(self) -> list[ev.Event]:
        rule = FedAsync() if self.buffer == 1 else FedBuff(buffer_size=self.buffer)
        spec = JobSpec(
            name="digits",
            protocol=Asynchronous(max_staleness=MAX_STALENESS, min_learners=self.buffer),
            rule=rule,
            termination=Termination(versions=self.num_versions),
        )
        self.events.append(
            ev.JobSubmitted(
                job=self.job,
                time_s=START_S,
                driver="driver-1",
                spec=spec,
                num_parameters=101_770,
                model_bytes=MODEL_BYTES,
            )
        )
        for name in self.learners:
            self.events.append(ev.LearnerJoined(job=self.job, time_s=START_S, learner=name))
        for index in range(len(self.learners)):
            self._give(index, START_S + 0.01 * index, 0)
        while self.version < self.num_versions:
            time_s, index, event = heapq.heappop(self.moments)
            self._happen(time_s, index, event)
        self.events += [
            ev.TaskLate(
                job=self.job,
                time_s=self.last_s,
                round=number,
                learner=name,
                reason="the job has enough updates",
                cancelled=True,
            )
            for name, number in sorted(self.open.items())
        ]
        self.events.append(
            ev.JobFinished(
                job=self.job,
                time_s=self.last_s,
                state="done",
                reason=f"{self.version} versions are committed",
                version=self.version,
                rounds=0,
                duration_s=self.last_s - START_S,
                metrics=self._scores(0.0),
            )
        )
        return self.events

    def _scores(self, shift: float) -> dict[str, float]:
        accuracy = 0.1 + 0.85 * (1 - math.exp(-self.version / 12)) + shift
        return {"accuracy": min(1.0, accuracy), "loss": 2.3 * math.exp(-self.version / 14) + 0.1 - shift / 2}

    def _give(self, index: int, now_s: float, attempt: int) -> None:
        name, draw = self.learners[index], self.draw
        about: Any = {"job": self.job, "round": self.version, "learner": name}
        self.events.append(
            ev.TaskSent(
                job=self.job,
                round=self.version,
                version=self.version,
                attempt=attempt,
                time_s=now_s,
                learners=(name,),
                num_bytes=MODEL_BYTES + 900,
                num_messages=2,
                send_s=0.002,
                workload={"epochs": 1 + index % 3},
            )
        )
        speed = 10 ** (index / max(1, len(self.learners) - 1))
        receive, evaluate = 0.01 * draw.uniform(0.5, 2), 0.2 / speed
        train, upload = 2.0 / speed * draw.uniform(0.8, 1.2), 0.02 * draw.uniform(0.5, 2)
        accepted = now_s + receive
        finished = accepted + evaluate + train
        self._at(accepted, index, ev.TaskAccepted(**about, receive_s=receive))
        self.tasks[name] = self.tasks.get(name, 0) + 1
        self.open[name] = self.version
        if index == 2 and self.tasks[name] == 1:
            self._at(accepted + 0.1, index, ev.TaskFailed(**about, reason="RuntimeError: CUDA out of memory"))
            return
        shift = draw.gauss(0, 0.02)
        result = ev.TaskFinished(
            **about,
            num_examples=100 + 20 * index,
            num_steps=20,
            num_epochs=1 + index % 3,
            metrics={"loss": self._scores(shift)["loss"]},
            evaluation=self._scores(shift),
            timings=Timings(receive_s=receive, evaluate_s=evaluate, train_s=train),
            peak_memory_bytes=200_000_000 + 10_000_000 * index,
        )
        self._at(finished, index, result)
        folded = ev.UpdateFolded(
            **about,
            weight=100.0 + 20 * index,
            num_bytes=MODEL_BYTES,
            num_messages=1,
            upload_s=upload,
            fold_s=0.0004,
        )
        self._at(finished + upload, index, folded)

    def _at(self, time_s: float, index: int, event: ev.Event) -> None:
        heapq.heappush(self.moments, (time_s, index, event.stamped(0, time_s)))

    def _happen(self, time_s: float, index: int, event: ev.Event) -> None:
        if isinstance(event, ev.UpdateFolded):
            staleness = self.version - event.round
            if staleness > MAX_STALENESS:
                reason = f"{staleness} versions were committed since; at most {MAX_STALENESS} are allowed"
                about: Any = {"job": self.job, "round": event.round, "learner": event.learner}
                self.events.append(ev.UpdateRefused(**about, time_s=time_s, reason=reason))
            else:
                self._fold(event.model_copy(update={"staleness": staleness}))
                return
            self._give(index, time_s, 0)
            return
        self.events.append(event)
        if isinstance(event, ev.TaskFailed):
            # At the same version, where no update has come in between: then it is another attempt.
            self._give(index, time_s, 1 if event.round == self.version else 0)

    def _fold(self, event: ev.UpdateFolded) -> None:
        self.events.append(event)
        del self.open[event.learner]
        self.held.append(event)
        if len(self.held) < self.buffer:
            return
        self.version += 1
        now_s = event.time_s + 0.003
        self.events.append(
            ev.VersionCommitted(
                job=self.job,
                time_s=now_s,
                round=self.version - 1,
                version=self.version,
                parent=self.version - 1,
                rule="fedasync" if self.buffer == 1 else "fedbuff",
                digest=f"{self.version:032x}",
                contributors=tuple(one.learner for one in self.held),
                total_weight=sum(one.weight for one in self.held),
                metrics={"loss": self._scores(0.0)["loss"]},
                round_s=now_s - self.last_s,
                aggregate_s=0.001,
                store_s=0.002,
                memory_bytes=150_000_000 + 100_000 * self.version,
            )
        )
        free, self.held, self.last_s = self.held, [], now_s
        for one in free if self.version < self.num_versions else ():
            self._give(self.learners.index(one.learner), now_s, 0)


def paced_events(num_learners: int = 8, num_rounds: int = 12) -> list[ev.Event]:
    """A job with rounds whose learners are given more epochs each time, the slow one fewer; with memory."""
    events: list[ev.Event] = []
    for event in FakeJob(num_learners=num_learners, num_rounds=num_rounds, job="paced-1").events():
        match event:
            case ev.JobSubmitted():
                spec = event.spec.model_copy(update={"pacing": Aimd(target_s=1.0)})
                events.append(event.model_copy(update={"spec": spec}))
            case ev.TaskSent() if event.round < num_rounds:
                for index, name in enumerate(event.learners):
                    epochs = max(1, 4 - event.round) if index == 3 else min(10, 1 + event.round)
                    update = {"learners": (name,), "workload": {"epochs": epochs}, "sequence": 0}
                    events.append(event.model_copy(update=update))
            case ev.TaskFinished():
                memory = 200_000_000 + 4_000_000 * event.round
                events.append(event.model_copy(update={"num_epochs": 2.0, "peak_memory_bytes": memory}))
            case ev.VersionCommitted():
                events.append(event.model_copy(update={"memory_bytes": 120_000_000 + 300_000 * event.round}))
            case _:
                events.append(event)
    return events
