"""What must be true at every step, looked at whenever the store is written to; and the record, at the end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from broker_fl.model import Array, Model
from broker_fl.roles.controller.job.eventlog import MAX_FORGOTTEN
from broker_fl.roles.controller.job.versions import VersionRecord
from broker_fl.wire import events as e
from broker_fl.wire.events import decode_event
from broker_fl.wire.job import JobSpec
from broker_fl.wire.rules import FedNova
from tests.simulation.folded import Folded
from tests.simulation.kernel import Kernel
from tests.simulation.lineage import Lineage
from tests.simulation.readings import check, step_of
from tests.simulation.references import Training

if TYPE_CHECKING:
    from broker_fl.interfaces import Store, TaskContext
    from broker_fl.roles.controller import Controller
    from tests.simulation.scenario import Scenario

MAX_LOOKS = 3
_NOBODYS_FAULT = ("missed its quorum", "nobody is left to ask")
_MISFORTUNES = (
    e.TaskFailed,
    e.UpdateRefused,
    e.TaskLate,
    e.LearnerLost,
    e.LearnerLeft,
    e.GroupMissed,
    e.GroupLost,
    e.GroupLeft,
)


class Audit:
    """Of one federation."""

    def __init__(self, kernel: Kernel, store: Store, scenario: Scenario) -> None:
        self._kernel = kernel
        self._store = store
        self._num_learners = scenario.num_learners
        self._skew_s = scenario.skew_s
        self._epoch = 0
        self._expected: list[tuple[JobSpec, float]] = []
        """What is submitted, and when that begins."""
        self._parents: dict[str, tuple[str, int]] = {}
        """Name of a job → job and version that it is to begin from."""
        self.lineages: dict[str, Lineage] = {}
        self.trainings: dict[int, Training] = {}
        self.counted: dict[int, tuple[str, int]] = {}
        """Training → the version that it is in."""
        self._manifests: dict[str, bytes] = {}
        self._reached: dict[str, tuple[int, int]] = {}
        self._ended: dict[str, str] = {}
        self._strays: dict[int, tuple[object, int]] = {}
        """How often an upload was seen whose learner has no task; the next heartbeat is its end."""
        self.has_lost = False
        """Whether the store was ever without power."""

    def expect(self, spec: JobSpec, parent: tuple[str, int] | None = None) -> None:
        """A driver is about to submit it, under a name that is not known yet."""
        self._expected.append((spec, self._kernel.now))
        if parent is not None:
            self._parents[spec.name] = parent

    def lineage(self, job: str) -> Lineage:
        """A job's versions."""
        if job not in self.lineages:
            fields = msgpack.unpackb(self._store.jobs()[job], use_list=False, strict_map_key=False)
            spec = JobSpec.model_validate(fields["spec"])
            began_at = [at for expected, at in self._expected if expected == spec]
            check(bool(began_at), f"{job} is what nobody submitted")
            self.lineages[job] = Lineage(job, spec, self._num_learners, began_at=min(began_at))
            if (parent := self._parents.get(spec.name)) is not None:
                self.lineages[job].begin_from(self.lineages[parent[0]], parent[1])
        return self.lineages[job]

    def given(self, learner: int, task: TaskContext, values: Array, own: Sequence[int]) -> None:
        """A learner is about to train; its process has done the trainings ``own``."""
        lineage = self.lineage(task.job)
        version = lineage.base_of(values)
        if task.control is None or lineage.variates is None or lineage.has_lost:
            check(task.control is None or lineage.variates is not None, f"variates came with {task.job}")
            return
        lineage.variates.check_correction(learner, version, self._of_job(own, task.job), task.control["w"])

    def _of_job(self, numbers: Sequence[int], job: str) -> list[int]:
        return [number for number in numbers if self.trainings[number].job == job]

    def trained(
        self, learner: int, task: TaskContext, given: Array, own: list[int], weight: int, is_usable: bool
    ) -> Training:
        """A learner has trained."""
        lineage, number = self.lineage(task.job), len(self.trainings) + 1
        rule, base = lineage.spec.rule, lineage.base_of(given)
        counts_steps = isinstance(rule, FedNova) or getattr(rule, "weighting", "") == "steps"
        steps = task.parameters.get("steps", 1 + number % 6 if counts_steps else 4)
        variates = None if lineage.has_lost else lineage.variates
        training = Training(
            number=number,
            learner=learner,
            job=task.job,
            base=base,
            given=given,
            step=step_of(rule, learner, number),
            weight=weight,
            num_steps=int(str(steps)),
            is_usable=is_usable,
            is_lost=variates is not None and variates.is_lost(learner, base, self._of_job(own, task.job)),
        )
        self.trainings[number] = training
        own.append(number)
        self._kernel.note(f"l{learner}", "has trained", training)
        return training

    # ------------------------------------------------------------ the store

    def stored(self, name: str, told: dict[str, Any], result: object) -> None:
        """A call of the store was carried out."""
        if name == "acquire_lease" and result is not None:
            given = int(str(result))
            check(given > self._epoch, f"epoch {given} was given after {self._epoch}")
            self._epoch = given
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
        at, newest = (state["version"], state["round"]), len(self.lineage(job).models) - 1
        is_of_newest = at[0] == newest or (self.lineage(job).has_lost and at[0] > newest)
        check(is_of_newest, f"{job}: a state of version {at[0]} was saved, the newest is {newest}")
        is_later = at >= self._reached.get(job, (0, 0)) or self.lineage(job).has_lost
        check(is_later, f"{job}: went back from {self._reached.get(job)} to {at}")
        self._reached[job] = at
        if job in self._ended:
            check(state["phase"] == "ended", f"{job} goes on after its end")
            check(state["end"] == self._ended[job], f"{job} ended twice")
        if state["phase"] == "ended":
            self._ended[job] = state["end"]

    def _committed(self, job: str, version: int) -> None:
        lineage, stored = self.lineage(job), self._store.versions(job)[-1]
        check(stored.version == version, f"{job}: committed {version}, the newest is {stored.version}")
        if version == len(lineage.models) - 1:
            check(self._manifests[job] == stored.manifest, f"{job}: version {version} was replaced")
            return
        check(version == len(lineage.models), f"{job}: version {version} after {len(lineage.models) - 1}")
        self._manifests[job] = stored.manifest
        data = b"".join(self._store.read_chunk(job, version, index) for index in range(stored.num_chunks))
        memory = _memory(VersionRecord.unpack(stored.manifest), data)
        for training in lineage.add(data, memory, self.trainings, self.counted):
            known = self.counted.get(training.number)
            check(known is None, f"{training} is in {known} and in version {version}")
            check(training.is_usable and training.job == job, f"{training} is in version {version} of {job}")
            self.counted[training.number] = job, version

    def forget(self) -> None:
        """The store has lost what was not on its disk: the end of a job, it may be, or versions."""
        self._ended.clear()
        self.has_lost = True
        for job, lineage in self.lineages.items():
            versions = self._store.versions(job)
            num_left = versions[-1].version + 1 if versions else 0
            if num_left < len(lineage.models):
                lineage.cut(num_left)
                self._manifests[job] = versions[-1].manifest if versions else b""
                self._reached.pop(job, None)
                self.counted = {n: at for n, at in self.counted.items() if at[0] != job or at[1] < num_left}

    # ------------------------------------------------------------ memory

    def bounded(self, controller: Controller) -> None:
        """What a controller that waits for the next call keeps of updates and models."""
        leadership = controller._leadership
        if leadership is None or not controller._loop._calls.is_waited_for:  # type: ignore[attr-defined]
            return
        for runner in leadership.jobs.running():
            for learner, upload in runner.updates.receiver._uploads.items():
                is_stray = learner not in runner.job.state.cohort
                looks = self._strays.get(id(upload), (upload, 0))[1] + 1 if is_stray else 0
                self._strays[id(upload)] = upload, looks
                check(looks <= MAX_LOOKS, f"the upload of {learner}, which has no task, is kept")
        check(len(leadership.requests.submissions._pending) <= 16, "models of jobs are kept without end")

    # ------------------------------------------------------------ the end

    def finished(self, job: str, heard: list[e.Event]) -> None:
        """The job's record in the store says what happened; its driver has heard it, once and in order."""
        stored = [decode_event(data) for data in self._store.read_events(job, after=0, limit=100_000)]
        self._is_in_order(job, [event.sequence for event in stored])
        self._is_in_order(job, [event.sequence for event in heard])
        end = heard[-1]
        check(isinstance(end, e.JobFinished), f"{job}: the driver heard {end.KIND} last")
        ends = [event for event in stored if isinstance(event, e.JobFinished)]
        if not self.has_lost:
            check(self._ended.get(job) == getattr(end, "state", None), f"{job}: its end is not stored")
            is_last = len(ends) == 1 and stored[-1] is ends[0]
            check(is_last, f"{job}: {len(ends)} ends, the last event is {stored[-1].KIND}")
            check(
                [event.sequence for event in heard] == [event.sequence for event in stored],
                f"{job}: not all heard",
            )
        self._told_what_was_done(job, stored)
        assert isinstance(end, e.JobFinished)
        self._ended_with_reason(job, end, stored)

    def _is_in_order(self, job: str, numbers: list[int]) -> None:
        steps = [later - number for number, later in pairwise([0, *numbers])]
        is_whole = all(step == 1 or step > MAX_FORGOTTEN for step in steps)
        is_growing = all(step > 0 for step in steps)
        check(is_whole or (self.has_lost and is_growing), f"{job}: events {numbers}")

    def _told_what_was_done(self, job: str, stored: list[e.Event]) -> None:
        versions = rounds = 0
        folded: Folded | None = Folded(job)
        """Since the last version; None: the record has gaps, as a store without power leaves them."""
        for number, event in enumerate(stored):
            if self.has_lost and event.sequence != (stored[number - 1].sequence if number else 0) + 1:
                folded, versions, rounds = None, 0, 0
            if folded is not None:
                folded.take(event)
            match event:
                case e.JobResumed():
                    folded = None if self.has_lost else Folded(job)
                    versions = rounds = 0 if self.lineages[job].has_lost else versions
                case e.RoundStarted():
                    check(event.round >= rounds, f"{job}: round {event.round} was begun after {rounds}")
                    rounds = event.round
                case e.VersionCommitted():
                    follows = event.version == versions + 1 or (self.has_lost and event.version > versions)
                    check(follows, f"{job}: version {event.version} after {versions}")
                    versions = event.version
                    if not self.lineages[job].has_lost:
                        self._as_recorded(job, event, folded)
                    folded = Folded(job)
                case _:
                    pass

    def _as_recorded(self, job: str, event: e.VersionCommitted, folded: Folded | None) -> None:
        contents = self.lineages[job].contents[event.version]
        what = f"{job}: version {event.version} is of {contents}"
        same = [
            one
            for one in contents
            if {f"l{each.learner}" for each in one.trainings} == set(event.contributors)
        ]
        check(bool(same), f"{what}; its record says {event.contributors}")
        total = same[0].total
        is_equal = abs(event.total_weight - total) <= 1e-9 * total
        check(is_equal, f"{what}; its record says {event.total_weight}")
        if folded is not None:
            found = {f"l{one.learner}": same[0].weights[one.number] for one in same[0].trainings}
            check(folded.is_of(found), f"{what}; folded were {folded.weights}, {folded.groups}")

    def _ended_with_reason(self, job: str, end: e.JobFinished, stored: list[e.Event]) -> None:
        spec, num_versions = self.lineages[job].spec, len(self.lineages[job].models) - 1
        wanted = spec.termination.rounds or spec.termination.versions
        is_newest = end.version == num_versions or self.lineages[job].has_lost
        check(is_newest, f"{job}: ended with version {end.version} of {num_versions}")
        if end.state == "done" and "have passed" in end.reason:
            self._ended_in_time(job)
        elif end.state == "done":
            check(end.version == wanted, f"{job} is done after {end.version} versions: {end.reason}")
        elif end.state == "failed":
            is_true = any(reason in end.reason for reason in _NOBODYS_FAULT)
            has_happened = any(isinstance(event, _MISFORTUNES) for event in stored)
            check(is_true and has_happened, f"{job} failed: {end.reason}")
        else:
            check("stopped" in end.reason, f"{job} ended as {end.state}: {end.reason}")

    def _ended_in_time(self, job: str) -> None:
        """By the clocks of the controllers, which are apart."""
        lineage = self.lineages[job]
        lasted, limit = self._kernel.now - lineage.began_at, lineage.spec.termination.wall_clock_s
        is_time = limit is not None and lasted >= limit - 2 * self._skew_s - 1.0
        check(is_time, f"{job}: {limit} s have not passed after {lasted:.0f} s")


def _memory(record: VersionRecord, data: bytes) -> Model | None:
    """What a rule keeps stands behind the values."""
    if record.memory_spec is None:
        return None
    return Model(record.memory_spec, np.frombuffer(data, np.uint8)[record.spec.num_bytes :])
