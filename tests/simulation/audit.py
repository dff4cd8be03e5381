"""What must be true at every step, and is looked at at every write to the store.

Each training adds a vector of its own to the model that it was given: 1 at its learner's place, and its own
number beside it. So from two versions that follow one another can be read which trainings are in the second
and with which weight, whatever the controller says of it. That is held against what learners really did, the
rule's formula, and the events.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from broker_fl.aggregation.staleness import discount
from broker_fl.model import Array
from broker_fl.wire import events as e
from broker_fl.wire.events import decode_event
from broker_fl.wire.job import JobSpec
from broker_fl.wire.rules import FedAsync, FedBuff
from tests.simulation.kernel import Kernel, Violation

if TYPE_CHECKING:
    from broker_fl.interfaces import Store
    from broker_fl.roles.controller import Controller

NUM_VALUES = 1_200
"""Of a model: three chunks of the smallest size."""
TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Training:
    """One call of ``train`` that came to its end."""

    number: int
    learner: int
    job: str
    base: int
    weight: int
    is_usable: bool


def check(truth: bool, what: str) -> None:
    """Raise a ``Violation`` if it is not true."""
    if not truth:
        raise Violation(what)


def step_of(learner: int, number: int) -> Array:
    """What a training adds."""
    step = np.zeros(NUM_VALUES)
    step[2 * learner], step[2 * learner + 1] = 1.0, number
    step[-1] = number
    return step


class Audit:
    """Of one federation."""

    def __init__(self, kernel: Kernel, store: Store, num_learners: int) -> None:
        self._kernel = kernel
        self._store = store
        self._num_learners = num_learners
        self._epoch = 0
        self.specs: dict[str, JobSpec] = {}
        self.models: dict[str, list[Array]] = defaultdict(list)
        self._digests: dict[str, dict[bytes, int]] = defaultdict(dict)
        self._manifests: dict[str, bytes] = {}
        self._expected: list[JobSpec] = []
        self.trainings: dict[int, Training] = {}
        self.counted: dict[int, tuple[str, int]] = {}
        """Training → the version that it is in."""
        self.weights: dict[str, dict[int, dict[int, float]]] = defaultdict(dict)
        """Job → version → training → its weight in the sum."""
        self._reached: dict[str, tuple[int, int]] = {}
        self._ended: dict[str, str] = {}
        self._has_lost = False

    def expect(self, spec: JobSpec) -> None:
        """A driver is about to submit it, under a name that is not known yet."""
        self._expected.append(spec)

    def _spec(self, job: str) -> JobSpec:
        if job not in self.specs:
            state = self._store.jobs()[job]
            fields = msgpack.unpackb(state, use_list=False, strict_map_key=False)["spec"]
            found = JobSpec.model_validate(fields)
            check(found in self._expected, f"{job} is what nobody submitted")
            self.specs[job] = found
        return self.specs[job]

    def check_spec(self, job: str, spec: JobSpec) -> None:
        """The job that the store has is the one that was submitted."""
        check(self._spec(job) == spec, f"{job} was stored with other settings")

    # ------------------------------------------------------------ learners

    def base_of(self, job: str, values: Array) -> int:
        """The version that a learner was given."""
        version = self._digests[job].get(values.tobytes())
        if version is None:
            raise Violation(f"a learner was given a model of job {job} that is no version of it")
        return version

    def trained(self, job: str, learner: int, base: int, weight: int, *, is_usable: bool) -> Training:
        """A learner has trained."""
        number = len(self.trainings) + 1
        training = Training(number, learner, job, base, weight, is_usable)
        self.trainings[number] = training
        self._kernel.note(f"l{learner}", "has trained", training)
        return training

    # ------------------------------------------------------------ the store

    def stored(self, name: str, told: dict[str, Any], result: object) -> None:
        """A call of the store was carried out."""
        if name == "acquire_lease" and result is not None:
            epoch = int(str(result))
            check(epoch > self._epoch, f"epoch {epoch} was given after {self._epoch}")
            self._epoch = epoch
        epoch = told.get("epoch")
        if epoch is None or name == "write_chunk":
            return
        check(epoch == self._epoch, f"the controller of epoch {epoch} wrote ({name}), {self._epoch} is newer")
        if name == "commit_version":
            self._committed(told["job"], told["version"])
        if name in ("save_job", "commit_version"):
            self._saved(told["job"], told["state"])

    def _saved(self, job: str, packed: bytes) -> None:
        state = msgpack.unpackb(packed, use_list=False, strict_map_key=False)
        at = state["version"], state["round"]
        check(state["version"] == len(self.models[job]) - 1, f"{job}: a state of another version was saved")
        check(at >= self._reached.get(job, (0, 0)), f"{job}: went back from {self._reached.get(job)} to {at}")
        self._reached[job] = at
        if job in self._ended:
            check(state["phase"] == "ended", f"{job} goes on after its end")
            check(state["end"] == self._ended[job], f"{job} ended twice")
        if state["phase"] == "ended":
            self._ended[job] = state["end"]

    def forget_ends(self) -> None:
        """The store has lost what was not on its disk: of a job's end it may know nothing any more."""
        self._ended.clear()
        self._has_lost = True

    def _committed(self, job: str, version: int) -> None:
        models, stored = self.models[job], self._store.versions(job)[-1]
        check(stored.version == version, f"{job}: committed {version}, the newest is {stored.version}")
        if version == len(models) - 1:
            check(self._manifests[job] == stored.manifest, f"{job}: version {version} was replaced")
            return
        check(version == len(models), f"{job}: version {version} after {len(models) - 1}")
        self._manifests[job] = stored.manifest
        data = b"".join(self._store.read_chunk(job, version, index) for index in range(stored.num_chunks))
        values = np.frombuffer(data, np.float64)
        if version > 0:
            self.weights[job][version] = self._read(job, version, values)
        models.append(values)
        check(data not in self._digests[job], f"{job}: version {version} is equal to an earlier one")
        self._digests[job][data] = version

    def _read(self, job: str, version: int, values: Array) -> dict[int, float]:
        """Which trainings are in the version, with which weights, and whether it is just what they make."""
        rule, before = self._spec(job).rule, self.models[job][-1]
        if isinstance(rule, FedAsync):
            found = [self._mixed_in(job, version, rule, values - before)]
        else:
            found = self._added(job, version, values - before)
        for training in found:
            known = self.counted.get(training.number)
            check(known is None, f"{training} is in {known} and in version {version}")
            check(training.is_usable and training.job == job, f"{training} is in version {version} of {job}")
            self.counted[training.number] = job, version
        return self._exact(job, version, found, values)

    def _mixed_in(self, job: str, version: int, rule: FedAsync, change: Array) -> Training:
        """FedAsync: the one training that explains the change."""
        before, discounted = self.models[job][-1], discount(rule.staleness)
        for training in reversed(self.trainings.values()):
            if training.job != job or training.number in self.counted or training.base >= version:
                continue
            share = rule.alpha * discounted(version - 1 - training.base)
            update = self.models[job][training.base] + step_of(training.learner, training.number)
            if np.allclose(share * (update - before), change, rtol=TOLERANCE, atol=TOLERANCE):
                return training
        raise Violation(f"{job}: no training explains version {version}")

    def _added(self, job: str, version: int, change: Array) -> list[Training]:
        """Rules that add: the trainings whose learners' places have changed."""
        found = []
        for learner in range(self._num_learners):
            share, total = change[2 * learner], change[2 * learner + 1]
            if abs(share) < TOLERANCE:
                check(abs(total) < 1e-6, f"{job}: version {version} has half an update of l{learner}")
                continue
            number = round(total / share)
            check(
                number in self.trainings,
                f"{job}: version {version} has an update {total / share} of l{learner}",
            )
            check(self.trainings[number].learner == learner, f"{job}: update {number} is not l{learner}'s")
            found.append(self.trainings[number])
        return found

    def _exact(self, job: str, version: int, found: list[Training], values: Array) -> dict[int, float]:
        """Hold the version against the formula; the weights come back."""
        spec, before, bases = self._spec(job), self.models[job][-1], self.models[job]
        check(bool(found), f"{job}: nothing is in version {version}")
        if isinstance(spec.rule, FedAsync | FedBuff):
            discounted = discount(spec.rule.staleness)
            weights = {one.number: discounted(version - 1 - one.base) for one in found}
        else:
            weights = {one.number: float(one.weight) for one in found}
            for one in found:
                check(
                    one.base == version - 1,
                    f"{job}: {one} was trained from an older version than {version - 1}",
                )
        limit = getattr(spec.protocol, "max_staleness", None)
        for one in found:
            stale = version - 1 - one.base
            check(limit is None or stale <= limit, f"{job}: {one} is {stale} versions old")
        steps = {one.number: step_of(one.learner, one.number) for one in found}
        if isinstance(spec.rule, FedAsync):
            (one,) = found
            weights[one.number] *= spec.rule.alpha
            share = weights[one.number]
            expected = (1 - share) * before + share * (bases[one.base] + steps[one.number])
        elif isinstance(spec.rule, FedBuff):
            check(
                len(found) == spec.rule.buffer_size, f"{job}: {len(found)} updates are in version {version}"
            )
            total = sum(weights[number] * steps[number] for number in weights)
            expected = before + spec.rule.learning_rate / len(found) * total
        else:
            total = sum(weights[number] * (before + steps[number]) for number in weights)
            expected = total / sum(weights.values())
        same = np.allclose(values, expected, rtol=1e-12, atol=1e-12)
        check(same, f"{job}: version {version} is not what {found} make")
        return weights

    # ------------------------------------------------------------ memory

    def bounded(self, controller: Controller) -> None:
        """What a controller that waits for the next call keeps of updates and models."""
        if not hasattr(controller, "_jobs") or not controller._loop._calls.is_waited_for:  # type: ignore[attr-defined]
            return
        for runner in controller._jobs.running():
            for learner, upload in runner._receiver._uploads.items():
                kept = upload.last_at < controller._ticked_at and learner not in runner.job.state.cohort
                check(not kept, f"the upload of {learner}, which has no task, is kept")
        check(len(controller._requests._pending) <= 16, "models of jobs are kept without end")

    # ------------------------------------------------------------ the end

    def finished(self, job: str, heard: list[e.Event]) -> None:
        """The job's record in the store says what happened; and its driver has heard it, once and in order."""
        stored = [decode_event(data) for data in self._store.read_events(job, after=0, limit=100_000)]
        numbers = [event.sequence for event in stored]
        whole = list(range(1, len(numbers) + 1))
        check(
            numbers == whole or self._has_lost and numbers == sorted(set(numbers)), f"{job}: events {numbers}"
        )
        ends = [event for event in stored if isinstance(event, e.JobFinished)]
        check(
            len(ends) == 1 and stored[-1] is ends[0],
            f"{job}: {len(ends)} ends, the last event is {stored[-1].KIND}",
        )
        told = [event.sequence for event in heard]
        check(told == sorted(set(told)), f"{job}: the driver heard {told}")
        check(isinstance(heard[-1], e.JobFinished), f"{job}: the driver heard {heard[-1].KIND} last")
        end = ends[0]
        check(end.version == len(self.models[job]) - 1, f"{job}: ended with version {end.version}")
        self._told_what_was_done(job, stored)
        self._ended_with_reason(job, end, stored)

    def _told_what_was_done(self, job: str, stored: list[e.Event]) -> None:
        versions = rounds = 0
        folded: dict[str, float] | None = {}
        """Since the last version; None: there are gaps in the record, which a store without power leaves."""
        for number, event in enumerate(stored):
            if self._has_lost and number and event.sequence != stored[number - 1].sequence + 1:
                folded = None
            match event:
                case e.JobResumed():
                    folded = {}
                case e.RoundStarted():
                    check(event.round >= rounds, f"{job}: round {event.round} was begun after {rounds}")
                    rounds = event.round
                case e.UpdateFolded() if folded is not None:
                    check(event.learner not in folded, f"{job}: {event.learner} is folded twice")
                    folded[event.learner] = event.weight
                case e.VersionCommitted():
                    check(event.version > versions, f"{job}: version {event.version} after {versions}")
                    versions = event.version
                    self._as_recorded(job, event, folded)
                    folded = {}
                case _:
                    pass

    def _as_recorded(self, job: str, event: e.VersionCommitted, folded: dict[str, float] | None) -> None:
        weights = self.weights[job][event.version]
        found = {f"l{self.trainings[number].learner}": weight for number, weight in weights.items()}
        what = f"{job}: version {event.version} has {found}"
        check(set(event.contributors) == set(found), f"{what}; its record says {event.contributors}")
        total = sum(weights.values())
        check(
            abs(event.total_weight - total) <= 1e-9 * total, f"{what}; its record says {event.total_weight}"
        )
        if folded is None:
            return
        check(set(folded) == set(found), f"{what}; folded were {folded}")
        for learner, weight in folded.items():
            check(abs(found[learner] - weight) <= 1e-9, f"{what}; folded were {folded}")

    def _ended_with_reason(self, job: str, end: e.JobFinished, stored: list[e.Event]) -> None:
        spec = self._spec(job)
        wanted = spec.termination.rounds or spec.termination.versions
        if end.state == "done":
            check(end.version == wanted, f"{job} is done after {end.version} versions: {end.reason}")
        elif end.state == "failed":
            true = "missed its quorum" in end.reason or "nobody is left to ask" in end.reason
            failures = [
                event
                for event in stored
                if isinstance(
                    event, e.TaskFailed | e.UpdateRefused | e.TaskLate | e.LearnerLost | e.LearnerLeft
                )
            ]
            check(true and bool(failures), f"{job} failed: {end.reason}")
        else:
            check("stopped" in end.reason, f"{job} ended as {end.state}: {end.reason}")
