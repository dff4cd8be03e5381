"""A host's group: many learners behind one mailbox, which sends one sum for those that it has worked on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

from broker_fl.errors import FrameRefused, SettingError, TaskCancelled, TaskDeclined
from broker_fl.interfaces import Learner, Parameters
from broker_fl.observer import WorkOutcome
from broker_fl.roles.about import about
from broker_fl.roles.attributes import attributes_of
from broker_fl.roles.learner.group_task import GroupTask, MemberTask
from broker_fl.roles.learner.incoming import IncomingModel
from broker_fl.roles.learner.lazy import LazyLearners
from broker_fl.roles.learner.services import HostServices
from broker_fl.roles.learner.settings import SOFTWARE
from broker_fl.roles.learner.shares import FinishedShare, refusal
from broker_fl.wire import messages as m
from broker_fl.wire.fields import MAX_GROUP, MAX_REASON_CHARS

log = logging.getLogger(__name__)
MEMBERS_PER_PAGE = 10_000
COLUMN_BYTES = 1_000_000
"""About what the attributes in a page of ``group_join`` take."""
MAX_STATUSES = 100
MAX_TASKS = 8
"""Of one job's round that a group holds; an attempt is one."""


class Group:
    """The learners of one host, and the newest round's tasks of each job.

    The loop's thread hands in what comes; ``num_workers`` threads work.
    """

    def __init__(self, name: str, learners: Mapping[str, Learner], services: HostServices) -> None:
        """Nothing is connected yet.

        Raises:
            SettingError: it has no learners, or too many.
            AppError: a learner has ``attributes`` that are none.
        """
        if not 0 < len(learners) <= MAX_GROUP:
            raise SettingError(f"group {name!r} has {len(learners)} learners; it may have 1 to {MAX_GROUP}")
        settings, runtime = services.settings, services.runtime
        self.id = name
        self.session = runtime.unique()[:16]
        self._services = services
        self._runtime = runtime
        self._learners = learners
        self._attributes = settings.attributes
        self._own_attributes: Mapping[str, Parameters] = (
            {} if isinstance(learners, LazyLearners) else _own(learners, settings.attributes)
        )
        self._tasks: dict[str, dict[m.TaskRef, GroupTask]] = {}
        self._models: dict[str, IncomingModel] = {}
        self._lock = threading.Lock()
        self._num_workers = settings.num_workers
        self._num_working = 0
        self._busy: set[str] = set()
        self._workers = runtime.workers(settings.num_workers, "learner-worker")

    @property
    def parties(self) -> Sequence[Group]:
        """The group itself: it has the mailbox."""
        return (self,)

    # ------------------------------------------------------------ what comes in

    def joins(self, mailbox: int) -> Iterator[m.GroupJoin]:
        """The pages of ``group_join``."""
        names = sorted({name for own in self._own_attributes.values() for name in own})
        size = max(1, min(MEMBERS_PER_PAGE, COLUMN_BYTES // (1 + 20 * len(names))))
        ids = iter(self._learners)
        num_pages = -(-len(self._learners) // size)
        for page in range(num_pages):
            members = tuple(islice(ids, size))
            yield m.GroupJoin(
                group=self.id,
                session=self.session,
                members=members,
                attributes=dict(self._attributes),
                columns={
                    name: tuple(self._own_attributes.get(learner, {}).get(name) for learner in members)
                    for name in names
                },
                page=page,
                num_pages=num_pages,
                software=SOFTWARE,
                tasks=self.statuses(),
                mailbox=mailbox,
            )

    def statuses(self) -> tuple[m.TaskStatus, ...]:
        """For heartbeats."""
        return tuple(whole.status() for whole in self._all()[-MAX_STATUSES:])

    def on_task(self, task: m.Task) -> None:
        """Take a task for some of the learners; those that have it already are asked for what they have."""
        whole = self._tasks.get(task.task.job, {}).get(task.task)
        new = list(dict.fromkeys(task.learners)) if whole is None else whole.lacking(task.learners)
        known = set(task.learners).difference(new)
        try:
            if new or not task.learners:
                whole = self._taken(task, whole)
        except (FrameRefused, TaskDeclined) as error:
            self._refuse(task, new, str(error)[:MAX_REASON_CHARS])
            new = []
        if whole is None:
            return
        if new:
            whole.add(task)
        elif known:
            whole.renew(task)
        self._send_again(whole, known)
        if new and whole.incoming.model is not None:
            self._accept(whole)
            self._begin_work()

    def _taken(self, task: m.Task, whole: GroupTask | None) -> GroupTask:
        """What the group has of the task, once the site's policy allows this very message: a task may come
        in several, of which each says how much its learners shall do.

        Raises:
            TaskDeclined: it does not.
            FrameRefused: the message contradicts itself, or another one of the task.
        """
        self._check(task)
        guard, now = self._services.guard, self._services.clock.now()
        if whole is not None:
            whole.check(task)
            guard.check(task, whole.incoming.spec.num_bytes)
            return whole
        num_bytes = guard.admit(task, now)
        incoming = self._incoming(task)
        guard.count(num_bytes, now)
        self._drop_others(task)
        whole = GroupTask(self.id, task, incoming, self._runtime)
        with self._lock:
            self._tasks.setdefault(task.task.job, {})[task.task] = whole
        return whole

    def _refuse(self, task: m.Task, learners: list[str], reason: str) -> None:
        """Say which learners will not do it: others of the group may have the task by another message."""
        log.warning("group %s does not take task %s: %s", self.id, task.task, reason)
        if not learners:
            self._report(m.Failed(learner=self.id, task=task.task, reason=reason))
            return
        share = refusal(self.id, task, self._runtime.unique()[:16], learners, reason)
        self._services.outbox.send_pages(self.id, task.inbox, share)

    def _check(self, task: m.Task) -> None:
        if not task.learners:
            raise FrameRefused(f"the task names none of the learners of group {self.id!r}")
        if task.form != "values" or task.control is not None:
            raise FrameRefused("a group sends the sum of its learners' values, and nothing else")

    def _incoming(self, task: m.Task) -> IncomingModel:
        """The version that the task announces; one that is there already is not received anew."""
        incoming = self._models.get(task.task.job)
        if incoming is None or incoming.manifest != task.model:
            incoming = self._models[task.task.job] = IncomingModel(
                task.model, self._services.settings.max_model_bytes, self._runtime, task.buffers
            )
        return incoming

    def _drop_others(self, task: m.Task) -> None:
        """A task replaces those of other rounds."""
        held = self._tasks.get(task.task.job, {})
        with self._lock:
            for ref in [ref for ref in held if ref.round != task.task.round]:
                held.pop(ref).cancel()
            while len(held) >= MAX_TASKS and task.task not in held:
                held.pop(next(iter(held))).cancel()

    def on_chunk(self, chunk: m.ModelChunk, payload: memoryview) -> None:
        """Take a part of a model in; work begins when it is whole."""
        incoming = self._models.get(chunk.job)
        if incoming is None or incoming.manifest.version != chunk.version:
            return
        if incoming.receive(chunk, payload):
            for whole in self._tasks.get(chunk.job, {}).values():
                if whole.incoming is incoming:
                    self._accept(whole)
            self._begin_work()

    def _accept(self, whole: GroupTask) -> None:
        accepted = m.Accepted(learner=self.id, task=whole.newest.task, receive_s=whole.incoming.receive_s)
        self._report(accepted)
        self._services.observer.received(whole.incoming.receive_s)

    def on_upload_request(self, request: m.UploadRequest) -> None:
        """Send what is finished of a task, again or for the first time."""
        whole = self._tasks.get(request.task.job, {}).get(request.task)
        if whole is None or not whole.shares:
            log.info("group %s has no result of task %s to send", self.id, request.task)
            return
        whole.newest = whole.newest.model_copy(update={"inbox": request.inbox})
        for share in whole.shares:
            self._send(whole, share, True)

    def _send_again(self, whole: GroupTask, learners: set[str]) -> None:
        """Finished shares of learners that are asked for once more."""
        for share in whole.shares:
            if not learners.isdisjoint(share.learners):
                self._send(whole, share, False)

    def cancel(self, cancel: m.Cancel) -> None:
        """Stop working on a job's tasks up to a round, and forget them."""
        held = self._tasks.get(cancel.task.job, {})
        with self._lock:
            for ref in [ref for ref in held if ref.round <= cancel.task.round]:
                held.pop(ref).cancel()
            if not held:
                self._tasks.pop(cancel.task.job, None)
                self._models.pop(cancel.task.job, None)

    def cancel_all(self) -> None:
        """Stop working."""
        for whole in self._all():
            whole.cancel()

    def _report(self, report: m.Message) -> None:
        self._services.outbox.report(self.id, report)

    def _send(self, whole: GroupTask, share: FinishedShare, is_asked_for: bool) -> None:
        """Have a share sent, with its sum or as the task says; from any thread."""
        outbox = self._services.outbox
        self._services.post(lambda: outbox.send_share(self.id, whole, share, is_asked_for=is_asked_for))

    # ------------------------------------------------------------ work

    def __len__(self) -> int:
        return len(self._learners)

    @property
    def num_working(self) -> int:
        """Workers that are at it."""
        return self._num_working

    @property
    def num_waiting(self) -> int:
        """Learners whose task waits for a worker; from any thread."""
        with self._lock:
            return sum(whole.num_waiting for whole in self._all())

    @property
    def is_idle(self) -> bool:
        """Whether nobody works or waits."""
        with self._lock:
            return not self._num_working and all(whole.is_idle for whole in self._all())

    def due_s(self) -> float | None:
        """In how many seconds ``do_what_is_due`` may have something to do."""
        due = [due_s for whole in self._all() if (due_s := whole.due_s()) is not None]
        return min(due, default=None)

    def do_what_is_due(self) -> None:
        """Send what is done of tasks whose deadlines are near."""
        for whole in self._all():
            if (share := whole.share_if_due()) is not None:
                self._send(whole, share, False)

    def _all(self) -> list[GroupTask]:
        return [whole for tasks in self._tasks.values() for whole in tasks.values()]

    def stop(self) -> None:
        """Let the workers end."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _begin_work(self) -> None:
        with self._lock:
            waiting = sum(whole.num_waiting for whole in self._all() if whole.incoming.model is not None)
            free = min(waiting, self._num_workers - self._num_working)
            self._num_working += max(0, free)
        for _ in range(free):
            self._workers.submit(self._work)

    def _work(self) -> None:
        """On a worker's thread: one learner after the other, until nobody waits."""
        while (held := self._next()) is not None:
            try:
                self._work_on(held)
            except Exception:  # the worker has others to work on
                log.exception("group %s failed at learner %s", self.id, held.learner)
        self._services.on_idle()

    def _work_on(self, held: MemberTask) -> None:
        began, task = self._runtime.steady_s(), held.task.task
        outcome: WorkOutcome = "failed"
        try:
            with about(job=task.job, round=task.round, learner=held.learner):
                outcome = "finished" if held.whole.work(held, self._made(held)) else "failed"
        except TaskCancelled:
            outcome = "cancelled"
            log.debug("learner %s of group %s stopped working", held.learner, self.id)
        finally:
            with self._lock:
                self._busy.discard(held.learner)
            share = held.whole.worked(self._runtime.steady_s() - began)
            if share is not None:
                self._send(held.whole, share, False)
        self._services.observer.worked(outcome, self._runtime.steady_s() - began)

    def _made(self, held: MemberTask) -> Callable[[], Learner]:
        def made() -> Learner:
            if held.learner not in self._learners:
                raise SettingError(f"it is not in group {self.id!r}")
            return self._services.guard.guarded(self._learners[held.learner])

        return made

    def _next(self) -> MemberTask | None:
        """The next learner, of the task that was worked on least; None ends the worker."""
        with self._lock:
            ready = [whole for whole in self._all() if whole.incoming.model is not None]
            for whole in sorted(ready, key=lambda one: one.worked_s) if len(ready) > 1 else ready:
                if (held := whole.take(self._busy)) is not None:
                    self._busy.add(held.learner)
                    return held
            self._num_working -= 1
            return None


def _own(learners: Mapping[str, Learner], given: Parameters) -> dict[str, Parameters]:
    """Attributes that learners tell besides those that are told of all."""
    found: dict[str, Parameters] = {}
    for learner_id, learner in learners.items():
        told = attributes_of(learner_id, learner, given)
        if told is not given:
            found[learner_id] = {name: value for name, value in told.items() if name not in given}
    return found
