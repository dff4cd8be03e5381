"""The seams of the system: what learner, transport, store, rule and selector must offer. Read this first.

=============  ============================================  ============================================
interface      implementations                               to add one
=============  ============================================  ============================================
``Learner``    the user's own, ``frameworks/``               any object with ``train`` and ``evaluate``
``Transport``  ``transports/rabbitmq``, ``memory``           a package there; it passes ``tests/contract``
``Store``      ``stores/redis.py``, ``stores/sqlite.py``     a file there; it passes ``tests/contract``
``Rule``       ``aggregation/``, one file per rule           a file there, its name in ``RULES``
``Selector``   ``coordination/selection/``                   a class there, its settings in ``wire/``
=============  ============================================  ============================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from broker_fl.model import Arrays, Model, ModelSpec
from broker_fl.topology import Entity

Metrics = Mapping[str, float]
Parameters = Mapping[str, str | int | float | bool | None]

# ---------------------------------------------------------------- learning


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What ``train`` gives back."""

    model: Arrays
    """The trained arrays, all of them (not the difference): the names, shapes and types that came in."""
    num_examples: int
    """Examples trained on; the update's weight in FedAvg. At least 1."""
    num_steps: int = 0
    """Optimiser steps done; 0 where nothing counts them."""
    num_epochs: float = 0.0
    """Passes over the local data that were done, parts of one included; 0 where nothing counts them."""
    metrics: Metrics = field(default_factory=dict)
    control: Arrays | None = None
    """Where the task has a ``control``: for each array that was trained, by name, the mean of its gradients
    over the steps, without the correction (SCAFFOLD's ``c_k⁺``).
    """


class TaskContext(Protocol):
    """What a learner is told about the task it works on, and how it answers while it works."""

    @property
    def job(self) -> str:
        """Name of the job."""
        ...

    @property
    def round(self) -> int:
        """Of the job, counted from 0."""
        ...

    @property
    def learner(self) -> str:
        """Id of this learner."""
        ...

    @property
    def parameters(self) -> Parameters:
        """The job's parameters: epochs, learning rate, whatever the app reads."""
        ...

    @property
    def control(self) -> Arrays | None:
        """What to add to each gradient, by the names of the model's float arrays: SCAFFOLD's ``c − c_k``.
        None under other rules.
        """
        ...

    def progress(self, fraction: float) -> None:
        """Say how far the work is, 0 to 1; heartbeats carry it on.

        Raises:
            TaskCancelled: the controller no longer wants the result; let it pass.
        """
        ...


@runtime_checkable
class Learner(Protocol):
    """One owner of data. No base class is needed.

    An optional third method, ``initial_model() -> Arrays``, gives the model that a job starts from. Optional
    ``attributes``, a dict, are told to the controller, which may select by them: ``num_examples``, for one.
    """

    def train(self, model: Arrays, task: TaskContext) -> Update:
        """Train from ``model`` on local data. The arrays are the learner's own: they may be written to."""
        ...

    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        """Metrics of ``model`` on local data; the key ``num_examples``, if given, is their weight in the
        mean.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerContext:
    """What a factory ``make_learner(context)`` is told about the learner that it makes."""

    learner: str
    """Its id."""
    index: int = 0
    """Its place among the learners of this process, or of this simulation: 0 … count - 1."""
    count: int = 1


# ---------------------------------------------------------------- transport


class Delivery(Protocol):
    """One message from a queue. It stays the consumer's until it is acked or rejected, once."""

    @property
    def body(self) -> bytes:
        """The frame."""
        ...

    @property
    def routing_key(self) -> str:
        """As published."""
        ...

    @property
    def redelivered(self) -> bool:
        """Whether it may have been delivered before."""
        ...

    @property
    def user(self) -> str | None:
        """The account that sent it, by the broker's word; None where the sender did not have it said."""
        ...

    def ack(self) -> None:
        """Done with it. From any thread; after a lost connection it does nothing: the message comes again."""
        ...

    def reject(self, *, requeue: bool = False) -> None:
        """Do not take it: dead-letter it, or put it back to where it was in the queue."""
        ...


Sink = Callable[[Delivery], None]
"""Takes a delivery on a thread of the transport; must not block, nor call back into the transport except to
ack.
"""


class Transport(Protocol):
    """A connection to the message broker, in the terms of AMQP 0-9-1; for any thread.

    What was declared and consumed is declared and consumed again after a lost connection, by the transport
    itself. Every message says which account sent it.
    """

    @property
    def user(self) -> str:
        """The account of this connection; empty where only the broker knows it (from a certificate)."""
        ...

    def declare(self, entities: Iterable[Entity]) -> None:
        """Make exchanges, queues and bindings, in order; what is there already stays as it is.

        Raises:
            SettingError: it exists with other settings (the message names it and both settings where known).
            AccessDenied: no permission.
            BrokerUnavailable: no answer.
            QueueLost: a queue is on a node of the broker's cluster that is down, and is not ``spare``.
        """
        ...

    def delete_queue(self, name: str) -> None:
        """Delete a queue with all it holds; nothing happens if there is none."""
        ...

    def consume(self, queue: str, sink: Sink, *, prefetch: int, exclusive: bool = False) -> None:
        """Hand the queue's messages to ``sink``, in order, at most ``prefetch`` of them not yet acked.

        Raises:
            AccessDenied: no permission, or ``exclusive`` and somebody else consumes from it.
            SettingError: there is no such queue.
            QueueLost: it is on a node of the broker's cluster that is down.
        """
        ...

    def cancel(self, queue: str) -> None:
        """Stop consuming; unacked deliveries stay valid. The queue is no longer declared again."""
        ...

    def publish(
        self,
        exchange: str,
        routing_keys: Sequence[str],
        body: bytes,
        *,
        persistent: bool = False,
        mandatory: bool = False,
    ) -> None:
        """Send one body to every queue that one of the keys reaches; waits while the window is full.

        The message is sent again until the broker has confirmed it: it arrives at least once, and in order
        unless a connection was lost in between, or a full queue refused one. ``persistent`` bodies survive a
        restart of the broker (in durable queues). With ``mandatory``, a message that reaches no queue is
        given to ``on_unroutable``.

        Raises:
            TransportClosed: ``close`` was called before or meanwhile.
        """
        ...

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything published is confirmed; False if that takes longer."""
        ...

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call back, on a thread of the transport, each time a lost connection works again and consumers are
        back.
        """
        ...

    def on_queue_lost(self, callback: Callable[[str], None]) -> None:
        """Call back with the name of a queue that was consumed from and is on a node of the broker's cluster
        that went down; again and again until it is back, or ``cancel`` is called.
        """
        ...

    def on_unroutable(self, callback: Callable[[str, str], None]) -> None:
        """Call back with exchange and routing key for each ``mandatory`` message that reached no queue."""
        ...

    def close(self) -> None:
        """Send what was published, as far as the broker takes it within a few seconds; then disconnect."""
        ...


# ---------------------------------------------------------------- store


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVersion:
    """A model version in the store: an opaque manifest, and how many chunks it has."""

    version: int
    manifest: bytes
    num_chunks: int


class Store(Protocol):
    """Where a federation's state lives. Writes carry the controller's epoch; an older one is fenced.

    A model version is chunks first, then one atomic step that makes manifest, newest version and job
    state visible together. All methods may be called from any thread. All raise ``StoreUnavailable``
    when the store does not answer or cannot write, and may then be called again; after ``write_chunk``
    and ``commit_version`` that means: again from the first chunk.
    """

    @property
    def chunk_bytes(self) -> int:
        """Of the pieces that it writes fastest."""
        ...

    def acquire_lease(self, owner: str, ttl_s: float) -> int | None:
        """Become the federation's controller: a new epoch, greater than all before.

        None while another holds the lease. The owner itself gets it at once, and fences its former
        epoch: a restarted controller need not wait, and two controllers must not have one name.
        """
        ...

    def renew_lease(self, epoch: int, ttl_s: float) -> None:
        """Hold on to the lease, or take it again if it ran out and nobody else took it.

        Raises:
            Fenced: it has passed to another epoch.
        """
        ...

    def release_lease(self, epoch: int) -> None:
        """Let the lease go, so that another controller need not wait for it to run out."""
        ...

    def save_job(self, job: str, state: bytes, *, epoch: int) -> None:
        """Replace the job's state.

        Raises:
            Fenced: a newer epoch exists; nothing was written.
        """
        ...

    def jobs(self) -> dict[str, bytes]:
        """State of every job, by id."""
        ...

    def delete_job(self, job: str, *, epoch: int) -> None:
        """Delete all that is stored of a job, in one step: state, versions, chunks, updates and events.

        Nothing happens if there is nothing of it. A store that is full takes it.

        Raises:
            Fenced: a newer epoch exists; nothing was deleted.
        """
        ...

    def write_chunk(self, job: str, version: int, index: int, data: memoryview, *, epoch: int) -> None:
        """Write a piece of a version that is not committed yet; invisible until then. ``data`` is not kept.

        Pieces of a version that is committed already are left alone. A store may send without waiting:
        its errors come at the latest from ``commit_version``.

        Raises:
            Fenced: a newer epoch exists. Nothing that anybody can see was written.
        """
        ...

    def commit_version(
        self,
        job: str,
        version: StoredVersion,
        state: bytes,
        *,
        epoch: int,
        keep: int,
    ) -> None:
        """Make the version the job's newest and replace the job's state, in one atomic step.

        The version must be the newest one plus 1, or 0 for the first; its chunks, written under this
        same epoch. To commit the newest version again, unchanged, is no error: its success may not have
        been heard of. All but the newest ``keep`` versions are dropped.

        Raises:
            Fenced: a newer epoch exists; nothing was written.
            StoreUnavailable: a chunk is missing, or the version does not follow the newest; nothing was
                committed.
        """
        ...

    def versions(self, job: str) -> list[StoredVersion]:
        """The versions that are kept, oldest first."""
        ...

    def read_chunk(self, job: str, version: int, index: int) -> bytes:
        """One piece of a committed version.

        Raises:
            KeyError: the version is not kept (any more).
        """
        ...

    def write_update(self, job: str, name: str, index: int, data: memoryview, *, epoch: int) -> None:
        """Write a piece of a learner's update that is stored beside the versions; over what was there.

        It can be read at once: what counts is only which names the job's state goes by.

        Raises:
            Fenced: a newer epoch exists; nothing was written.
        """
        ...

    def read_update(self, job: str, name: str, index: int) -> bytes:
        """One piece of a stored update.

        Raises:
            KeyError: it is not there (any more).
        """
        ...

    def updates(self, job: str) -> list[str]:
        """Names of the stored updates, sorted, also of those of which only a part was written."""
        ...

    def drop_updates(self, job: str, names: Sequence[str], *, epoch: int) -> None:
        """Delete stored updates, in one step; nothing happens to those that are not there.

        Raises:
            Fenced: a newer epoch exists; nothing was deleted.
        """
        ...

    def append_events(self, job: str, events: Sequence[bytes], *, first: int, epoch: int) -> None:
        """Append packed events, numbered ``first``, ``first + 1``, …; numbers up to the last are left alone.

        Raises:
            Fenced: a newer epoch exists; nothing was written.
        """
        ...

    def read_events(self, job: str, *, after: int, limit: int) -> list[bytes]:
        """Up to ``limit`` events with numbers above ``after``, in order."""
        ...

    def num_events(self, job: str) -> int:
        """Number of the job's last event; 0 if it has none."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


# ---------------------------------------------------------------- aggregation and choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One learner's update on its way into the sum. Its model is the rule's: nobody else writes to it."""

    learner: str
    model: Model
    num_examples: int
    num_steps: int = 0
    staleness: int = 0
    """How many versions were committed since the one that it was trained from; in a round always 0."""
    metrics: Metrics = field(default_factory=dict)
    """Of training."""
    evaluation: Metrics = field(default_factory=dict)
    """Of the version that the learner was given, on its data."""
    control: Arrays | None = None
    """SCAFFOLD: what changed in the learner's control variate; None if it had lost it, and in other jobs."""
    magnitudes: Sequence[float] | None = None
    """Where the values were looked at as they arrived, and all are finite: of each of the model's runs, what
    no absolute value exceeds.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a round begins from."""

    spec: ModelSpec
    model: Callable[[], Model]
    """The version that the cohort was given; fetched when it is asked for, and not to be written to."""
    memory: Model | None = None
    """What the rule kept from the round before (momentum, control variates); None in the first round."""
    buffers: Set[str] = frozenset()
    """Names of the float tensors that are not trained, such as running variances (``JobSpec.buffers``)."""
    round: int = 0
    learners: Callable[[], Sequence[str]] = tuple
    """All that are there at the moment, whether they were asked or not."""
    updates: Mapping[str, Contribution] = field(default_factory=dict)
    """The newest of each learner that ``Combined.updates`` ever had, by learner; one is read from the store
    when it is asked for, without its metrics.
    """
    carried: object = None
    """What the rule carried on from the round before; None after a restart of the controller, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """What came of a round."""

    model: Model
    memory: Model | None = None
    """What the rule wants to have in the next round; stored together with the version."""
    updates: Sequence[Contribution] = ()
    """Updates of this round that are stored as well, each in the place of its learner's last (asynchronous
    protocol).
    """
    used: Mapping[str, float] | None = None
    """Shares of the learners in the model, for rules that choose among updates: 0 for one that was left out.
    None: all are in it by their weights.
    """
    carried: object = None
    """What the next round can use and could also make anew: it stays in memory and is not stored."""


class Accumulator(Protocol):
    """Takes a round's contributions one by one."""

    @property
    def total_weight(self) -> float:
        """Of all that was folded; 0 before the first."""
        ...

    def fold(self, contribution: Contribution) -> float:
        """Take one contribution in; its weight comes back.

        A rule that streams keeps nothing of it; one that needs all updates at once says so in its docstring.

        Raises:
            UpdateRefused: spec, weight or values are not usable; nothing was changed.
        """
        ...

    def result(self) -> Combined:
        """The combined model; the accumulator is used up.

        Raises:
            AggregationError: too little was folded, or the result is not finite.
        """
        ...


@runtime_checkable
class SumAccumulator(Accumulator, Protocol):
    """An accumulator that is a plain weighted sum, so that it takes sums of others: those of groups."""

    def fold_sum(self, total: Model, weight: float) -> None:
        """Take in ``Σ wⱼ xⱼ`` (a model of ``aggregation.sums.sum_spec``), ``weight`` being ``Σ wⱼ``.

        Raises:
            UpdateRefused: another spec, or values that are not finite; nothing was changed.
        """
        ...


@runtime_checkable
class LazyAccumulator(Accumulator, Protocol):
    """An accumulator that adds several contributions in one pass, which some may wait for."""

    def settle(self) -> None:
        """Add what waits: nothing else is to be done at the moment. What comes of the round is the same."""
        ...


class Rule(Protocol):
    """How a round's updates become the next version."""

    def begin(self, given: Given) -> Accumulator:
        """Begin a round."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A live learner, as a selector sees it."""

    learner: str
    attributes: Parameters = field(default_factory=dict)
    software: str = ""
    """What it runs, with the version: ``broker_fl 0.1.0``."""


@dataclass(slots=True, kw_only=True)
class Record:
    """What a job has seen of one learner so far. Times are means over its tasks, in which older ones fade."""

    num_tasks: int = 0
    """That it was given."""
    num_updates: int = 0
    """That counted."""
    num_failures: int = 0
    """In a row, up to now: failed, refused, late or lost."""
    last_round: int = -1
    """In which it was last given a task; -1 before the first."""
    num_examples: int = 0
    """That it said it trained on, last."""
    task_s: float = 0.0
    """Seconds from sending a task to having its update; 0 before the first."""
    step_s: float = 0.0
    """Seconds for an optimiser step; 0 where it counts none."""
    epoch_s: float = 0.0
    """Seconds for a pass over its data; 0 where it counts none."""
    evaluation: Metrics = field(default_factory=dict)
    """Its last: of the version that it was then given, on its data."""
    epochs: int = 0
    """Local epochs that it is given at present by pacing; 0 where pacing does not count in epochs."""


class Selector(Protocol):
    """Chooses a round's cohort."""

    def select(self, members: Sequence[Member], round: int, history: Mapping[str, Record]) -> list[str]:
        """Ids of the chosen, sorted; so are ``members``. The same arguments give the same answer.

        ``history`` has a record for each learner that was ever given a task of this job.
        """
        ...


class Extensions(Protocol):
    """Rules and selectors of the user's own; jobs name them by their classes."""

    def rule(self, name: str, settings: Parameters) -> Rule:
        """The rule of that class. That there is none is said by ``begin``, as an ``AppError``."""
        ...

    def selector(self, name: str, settings: Parameters) -> Selector:
        """The selector of that class. That there is none is said by ``select``, as an ``AppError``."""
        ...
