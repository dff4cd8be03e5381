"""Tasks and their model on the way out: one publish for each message, whatever the size of the cohort, and
one message for both where they fit into one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial

from broker_fl.aggregation.scaffold import Variates
from broker_fl.coordination import signals as s
from broker_fl.errors import SettingError
from broker_fl.model import Array, Model
from broker_fl.roles.controller.job.shares import ENCODING
from broker_fl.roles.controller.services import Services
from broker_fl.roles.progress import Progress
from broker_fl.roles.sender import handing, publishing
from broker_fl.wire.chunks import cut, num_chunks
from broker_fl.wire.control import joined
from broker_fl.wire.encodings import encoding
from broker_fl.wire.events import Event, TaskSent, TransferProgress
from broker_fl.wire.fields import Form
from broker_fl.wire.frames import MAX_CHUNK_HEADER_BYTES, pack_chunk
from broker_fl.wire.handed import WHOLE, Handed
from broker_fl.wire.job import JobSpec
from broker_fl.wire.messages import ModelChunk, ModelManifest, Task, Terms

MANY_MEMBERS = 2_000
"""For a message with several keys RabbitMQ looks through all bindings of the exchange (``rabbit_router``),
two of each learner; a single key it looks up. With 5,000 mailboxes on 2 busy cores, 5,000 deliveries by 100
keys took 1.3 s of its CPU time, by single keys 0.5 s. So where many are there, small messages go out one by
one.
"""
ONE_BY_ONE_BYTES = 16 << 10
OTHER_FIELDS_BYTES = 1_000
"""More than a chunk's header takes beside its task."""


@dataclass(frozen=True, slots=True)
class OutgoingTasks:
    """Of one job; works on a sender's thread."""

    services: Services
    spec: JobSpec
    driver: str
    """Who submitted the job."""
    form: Form
    compact: Set[str]
    """Learners that take a task and its model as one message."""
    emit: Callable[[Event], None]
    """For the controller's thread."""
    variates: Variates | None
    """SCAFFOLD's, of the version that goes out; None where the updates have none."""
    counted: Mapping[str, int] | None = None
    """Rounds of the learners' last updates that counted; None where they have no residuals."""

    def publish(self, action: s.SendTasks, model: Model) -> list[TaskSent]:
        """Send the task, then the model's chunks; what that took comes back, for each group by itself.

        Raises:
            SettingError: the job's encoding cannot carry the version; nothing was sent.
        """
        clock = self.services.clock
        began = clock.steady_s()
        task, buffer = self._encoded(action, model)
        together, apart = self._divided(action.learners, task, buffer)
        num_bytes = self._publish_together(together, task, buffer) if together else 0
        num_bytes += self._publish_task(apart, task) + buffer.nbytes * len(apart)
        group_bytes = {
            group: self._publish_to_group(task, group, members) for group, members in action.groups.items()
        }
        self._publish_model(self._keys((*apart, *action.groups)), action, task.model, buffer)
        num_messages = 1 + num_chunks(buffer.nbytes, task.chunk_bytes)
        sent = partial(
            TaskSent,
            job=action.task.job,
            round=action.task.round,
            attempt=action.task.attempt,
            version=action.version,
            workload=dict(action.workload),
            send_s=clock.steady_s() - began,
        )
        events = [
            sent(
                group=group,
                learners=members,
                num_bytes=group_bytes[group] + buffer.nbytes,
                num_messages=num_messages,
            )
            for group, members in action.groups.items()
        ]
        if not action.learners:
            return events
        alone = sent(
            learners=action.learners,
            num_bytes=num_bytes,
            num_messages=len(together) + num_messages * len(apart),
        )
        return [alone, *events]

    def _encoded(self, action: s.SendTasks, model: Model) -> tuple[Task, Array]:
        """The task, and the model as it travels."""
        transfer, buffers = self.spec.transfer, self._buffers(model)
        if self.variates is not None:
            model = joined(model, self.variates.mean())
        used = encoding(transfer.of_versions, buffers)
        if (tensor := used.overflow(model)) is not None:
            raise SettingError(
                f"version {action.version} cannot be sent as {transfer.of_versions!r}: a value of tensor "
                f"{tensor!r} is too large for it, and would be infinite. Choose another 'transfer.broadcast' "
                "('raw' can carry all); or name the tensor in 'buffers', if it is not trained"
            )
        buffer = used.encode(model)
        manifest = ModelManifest(
            version=action.version,
            spec=model.spec.to_wire(),
            spec_digest=model.spec.digest,
            digest=model.digest,
            encoding=transfer.of_versions,
            num_bytes=buffer.nbytes,
            chunk_bytes=transfer.chunk_bytes,
        )
        return self._task(action, manifest, buffers), buffer

    def _buffers(self, model: Model) -> tuple[str, ...]:
        """What learners must know of the job's, to read versions and to make updates."""
        transfer = self.spec.transfer
        if self.form == "values" and transfer.of_versions == transfer.encoding == "raw":
            return ()
        return tuple(sorted(self.spec.buffers_of(model.spec)))

    def _divided(self, learners: Sequence[str], task: Task, buffer: Array) -> tuple[list[str], list[str]]:
        """Those that get task and model as one message, and those that get them apart."""
        compact = self.compact if self._fits(task, buffer) else frozenset()
        together = [learner for learner in learners if learner in compact]
        return together, [learner for learner in learners if learner not in compact]

    def _fits(self, task: Task, buffer: Array) -> bool:
        """Whether task and model can go as one message."""
        if handing(self.services.transport) is not None:
            return True
        return num_chunks(buffer.nbytes, task.chunk_bytes) == 1 and _is_header(task)

    def _publish_model(
        self, keys: Sequence[str], action: s.SendTasks, manifest: ModelManifest, buffer: Array
    ) -> None:
        if not keys:
            return
        services, progress = self.services, self._progress(action, buffer.nbytes)
        tasks = services.topology.tasks
        for sent_bytes in publishing(services.transport, tasks, keys, action.task.job, manifest, buffer):
            progress.add(sent_bytes)

    def _progress(self, action: s.SendTasks, total_bytes: int) -> Progress:
        def tell(num_bytes: int, total_bytes: int) -> None:
            task, services = action.task, self.services
            event = TransferProgress(
                job=task.job, round=task.round, direction="down", num_bytes=num_bytes, total_bytes=total_bytes
            )
            services.post(lambda: self.emit(event))

        return Progress(total_bytes, self.services.clock.steady_s, tell)

    def _task(self, action: s.SendTasks, manifest: ModelManifest, buffers: tuple[str, ...]) -> Task:
        transfer = self.spec.transfer
        return Task(
            task=action.task,
            model=manifest,
            train=action.train,
            evaluate=self.spec.evaluate,
            parameters={**self.spec.task_parameters, **action.workload},
            encoding=transfer.encoding,
            form=self.form,
            buffers=buffers,
            chunk_bytes=transfer.chunk_bytes,
            inbox=self.services.inbox,
            upload="on_request" if action.upload_on_request else "at_once",
            deadline_s=action.deadline_s,
            compact=True,
            terms=Terms(
                name=self.spec.name,
                driver=self.driver,
                rule=getattr(self.spec.rule, "rule", self.spec.rule.name),
                protocol=self.spec.protocol.name,
                cohort=action.cohort,
                min_cohort=action.min_cohort,
            ),
        )

    def _publish_task(self, learners: Sequence[str], task: Task) -> int:
        """One message for all whose variate or residual is of the same round; bytes to all learners
        together.
        """
        num_bytes = 0
        for one, alike in self._by_round(learners, task):
            num_bytes += self._publish(alike, one.pack())
        return num_bytes

    def _publish_together(self, learners: Sequence[str], task: Task, buffer: Array) -> int:
        """The same with the model, which is one chunk."""
        piece = partial(
            ModelChunk, job=task.task.job, version=task.model.version, encoding=task.model.encoding
        )
        by_round, num_bytes = self._by_round(learners, task), 0
        if (local := handing(self.services.transport)) is not None:
            for one, alike in by_round:
                whole, keys = Handed.over(piece(**WHOLE, task=one), buffer), self._keys(alike)
                local.hand_over(self.services.topology.tasks, keys, whole, mandatory=True)
            return buffer.nbytes * len(learners)
        (chunk,) = cut(buffer, self.spec.transfer.chunk_bytes)
        for one, alike in by_round:
            header = piece(index=chunk.index, count=chunk.count, checksum=chunk.checksum, task=one)
            num_bytes += self._publish(alike, pack_chunk(header.KIND, header.model_dump(), chunk.payload))
        return num_bytes

    def _publish(self, learners: Sequence[str], body: bytes) -> int:
        services, keys = self.services, self._keys(learners)
        one_by_one = len(body) <= ONE_BY_ONE_BYTES and len(services.members) > MANY_MEMBERS
        for some in [[key] for key in keys] if one_by_one else [keys]:
            services.transport.publish(services.topology.tasks, some, body, mandatory=True)
        return len(body) * len(learners)

    def _publish_to_group(self, task: Task, group: str, members: Sequence[str]) -> int:
        """One message for all of its members that are meant; its bytes come back."""
        asked = {
            "learners": tuple(members),
            "weighting": getattr(self.spec.rule, "weighting", "examples"),
            "encoding": ENCODING,
        }
        body = task.model_copy(update=asked).pack()
        services = self.services
        services.transport.publish(services.topology.tasks, self._keys([group]), body, mandatory=True)
        return len(body)

    def _by_round(self, learners: Sequence[str], task: Task) -> Iterator[tuple[Task, list[str]]]:
        """The task for learners whose variate and residual are of the same rounds."""
        alike: dict[tuple[int | None, int | None], list[str]] = {}
        for learner in learners:
            control = None if self.variates is None else self.variates.rounds.get(learner, -1)
            residual = None if self.counted is None else self.counted.get(learner, -1)
            alike.setdefault((control, residual), []).append(learner)
        for (control, residual), found in alike.items():
            yield task.model_copy(update={"control": control, "residual": residual}), found

    def _keys(self, learners: Sequence[str]) -> list[str]:
        return [self.services.keys.of(learner) for learner in learners]


def _is_header(task: Task) -> bool:
    """Whether the task fits into the header of a chunk."""
    return len(task.pack()) <= MAX_CHUNK_HEADER_BYTES - OTHER_FIELDS_BYTES
