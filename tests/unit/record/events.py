"""Events as a real job makes them, from a seed: a straggler, failures, a refused update, a retried round."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from broker_fl.wire import events as ev
from broker_fl.wire.job import JobSpec, Termination
from broker_fl.wire.messages import Timings
from broker_fl.wire.protocols import Synchronous

START_S = 1_790_000_000.0
MODEL_BYTES = 407_080


@dataclass
class FakeJob:
    """Makes the events of one job. Learner 3 is three times slower than the others, and often late."""

    num_learners: int = 10
    num_rounds: int = 20
    seed: int = 0
    job: str = "digits-7f3a"
    incidents: bool = True
    speed: float = 1.0
    now_s: float = START_S
    _sequence: int = 0
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self.learners = tuple(f"site-{index:02d}" for index in range(self.num_learners))
        self.examples = {name: self._random.randint(40, 300) for name in self.learners}

    def events(self) -> Iterator[ev.Event]:
        """All events of the job, numbered, in the order of their numbers."""
        for event in self._job():
            self._sequence += 1
            yield event.stamped(self._sequence, event.time_s)

    def _job(self) -> Iterator[ev.Event]:
        spec = JobSpec(
            name="digits",
            protocol=Synchronous(quorum=0.7, deadline_s=1.2),
            termination=Termination(rounds=self.num_rounds),
            parameters={"epochs": 2, "learning_rate": 0.1},
        )
        yield ev.JobSubmitted(
            job=self.job,
            time_s=self.now_s,
            driver="driver-1",
            spec=spec,
            num_parameters=101_770,
            model_bytes=MODEL_BYTES,
        )
        yield ev.JobWaiting(
            job=self.job,
            time_s=self.now_s,
            reason="0 of 1 learners are there",
            num_learners=0,
            num_needed=1,
        )
        for name in self.learners:
            self.now_s += 0.002
            yield ev.LearnerJoined(job=self.job, time_s=self.now_s, learner=name, attributes={"region": "eu"})
        for number in range(self.num_rounds):
            yield from self._round(number)
        yield from self._evaluation()
        yield ev.JobFinished(
            job=self.job,
            time_s=self.now_s,
            state="done",
            reason=f"{self.num_rounds} rounds are done",
            version=self.num_rounds,
            rounds=self.num_rounds,
            duration_s=self.now_s - START_S,
            metrics=self._evaluated(self.num_rounds, 0.0),
        )

    def _evaluated(self, version: int, shift: float) -> dict[str, float]:
        accuracy = 0.1 + 0.86 * (1 - math.exp(-version * self.speed / 4.5))
        loss = 2.3 * math.exp(-version * self.speed / 5.0) + 0.12
        return {"accuracy": min(1.0, max(0.0, accuracy + shift)), "loss": max(0.01, loss * (1 - 1.5 * shift))}

    def _round(self, number: int) -> Iterator[ev.Event]:
        job, start_s = self.job, self.now_s
        special = self.incidents and self.num_learners > 6
        yield ev.RoundStarted(
            job=job,
            time_s=start_s,
            round=number,
            version=number,
            cohort=self.learners,
            deadline_s=1.2,
        )
        yield self._sent(number, self.learners, 0)
        if special and number == 12:
            yield ev.LearnerLost(job=job, time_s=start_s + 0.05, learner=self.learners[6], silent_s=30.0)
            yield ev.LearnerJoined(job=job, time_s=start_s + 0.3, learner=self.learners[6])
            self.now_s = start_s + 0.4
            yield ev.RoundRetried(
                job=job,
                time_s=self.now_s,
                round=number,
                attempt=1,
                reason="6 of 10 delivered; 7 were needed",
            )
            yield self._sent(number, self.learners, 1)
        moments: list[ev.Event] = []
        contributors = []
        for index, name in enumerate(self.learners):
            folded = self._task(moments, number, name, index, special)
            contributors += [name] if folded else []
        moments.sort(key=lambda event: event.time_s)
        yield from moments
        self.now_s = max(event.time_s for event in moments) + 0.001
        yield self._version_evaluated(number, number)
        round_s = self.now_s + 0.012 - start_s
        self.now_s += 0.012
        weight = float(sum(self.examples[name] for name in contributors))
        yield ev.VersionCommitted(
            job=job,
            time_s=self.now_s,
            round=number,
            version=number + 1,
            digest=f"{self._random.getrandbits(128):032x}",
            contributors=tuple(contributors),
            total_weight=weight,
            metrics={"loss": self._evaluated(number, 0.0)["loss"] * 0.8},
            round_s=round_s,
            aggregate_s=0.004,
            store_s=0.008,
        )

    def _sent(self, number: int, learners: tuple[str, ...], attempt: int) -> ev.TaskSent:
        self.now_s += 0.015
        copies = math.ceil(len(learners) / 100)
        return ev.TaskSent(
            job=self.job,
            time_s=self.now_s,
            round=number,
            attempt=attempt,
            learners=learners,
            num_bytes=copies * (MODEL_BYTES + 900),
            num_messages=2 * copies,
            send_s=0.015,
        )

    def _task(self, moments: list[ev.Event], number: int, name: str, index: int, special: bool) -> bool:
        draw = self._random
        slow = (3.0 if special and index == 3 else 1.0) * draw.uniform(0.8, 1.3)
        receive, queue = 0.02 * draw.uniform(0.5, 2), 0.004 * draw.uniform(0, 3)
        evaluate, train, upload = (
            0.03 * slow,
            0.25 * slow * self.examples[name] / 170,
            0.03 * draw.uniform(0.5, 2),
        )
        accepted = self.now_s + receive
        finished = accepted + queue + evaluate + train
        about: Any = {"job": self.job, "round": number, "learner": name}
        moments.append(ev.TaskAccepted(**about, time_s=accepted, receive_s=receive))
        if special and index == 5 and number in (4, 5):
            reason = "RuntimeError: CUDA out of memory"
            moments.append(ev.TaskFailed(**about, time_s=accepted + 0.1, reason=reason))
            return False
        moments.append(
            ev.TaskFinished(
                **about,
                time_s=finished,
                num_examples=self.examples[name],
                num_steps=20,
                metrics={"loss": self._evaluated(number, draw.gauss(0, 0.03))["loss"] * 0.8},
                evaluation=self._evaluated(number, draw.gauss(0, 0.03)),
                timings=Timings(receive_s=receive, queue_s=queue, evaluate_s=evaluate, train_s=train),
            ),
        )
        if special and index == 8 and number == 9:
            reason = "tensor 'dense.weight': 3 values are not finite"
            moments.append(ev.UpdateRefused(**about, time_s=finished + upload, reason=reason))
            return False
        if special and index == 3 and number % 3 == 0:
            moments.append(
                ev.TaskLate(**about, time_s=finished + upload, reason="the round closed 0.2 s before"),
            )
            return False
        moments.append(
            ev.UpdateFolded(
                **about,
                time_s=finished + upload,
                weight=float(self.examples[name]),
                num_bytes=MODEL_BYTES,
                num_messages=1,
                upload_s=upload,
                fold_s=0.0004,
            ),
        )
        return True

    def _version_evaluated(self, number: int, version: int) -> ev.VersionEvaluated:
        return ev.VersionEvaluated(
            job=self.job,
            time_s=self.now_s,
            round=number,
            version=version,
            metrics=self._evaluated(version, 0.0),
            num_learners=self.num_learners,
            num_examples=sum(self.examples.values()),
        )

    def _evaluation(self) -> Iterator[ev.Event]:
        number = self.num_rounds
        yield ev.RoundStarted(
            job=self.job,
            time_s=self.now_s,
            round=number,
            version=number,
            cohort=self.learners,
            train=False,
        )
        yield self._sent(number, self.learners, 0)
        for name in self.learners:
            self.now_s += 0.004
            yield ev.TaskAccepted(
                job=self.job,
                time_s=self.now_s,
                round=number,
                learner=name,
                receive_s=0.003,
            )
            yield ev.TaskFinished(
                job=self.job,
                time_s=self.now_s + 0.03,
                round=number,
                learner=name,
                evaluation=self._evaluated(number, self._random.gauss(0, 0.02)),
                timings=Timings(receive_s=0.003, evaluate_s=0.03),
            )
        self.now_s += 0.031
        yield self._version_evaluated(number, number)


def fake_events(
    num_learners: int = 10,
    num_rounds: int = 20,
    seed: int = 0,
    **settings: Any,
) -> list[ev.Event]:
    """The events of a whole job."""
    job = FakeJob(num_learners=num_learners, num_rounds=num_rounds, seed=seed, **settings)
    return list(job.events())
