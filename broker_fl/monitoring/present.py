"""What a daemon is like at this moment, and whether it is ready for its work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from broker_fl.roles.status import ControllerStatus, LearnerStatus
from broker_fl.transports.traffic import Traffic

STALLED_AFTER_S = 300.0
"""A thread that decides nothing for so long hangs; folding a model of gigabytes takes seconds."""


@dataclass(frozen=True, slots=True)
class Value:
    """One sample of a metric."""

    label: str
    number: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One metric that is asked for."""

    name: str
    what: str
    values: tuple[Value, ...]
    label: str = ""
    """Name of the label that tells the values apart."""
    is_counter: bool = False


def _one(name: str, what: str, number: float, *, is_counter: bool = False) -> Fact:
    return Fact(name=name, what=what, values=(Value("", float(number)),), is_counter=is_counter)


def _many(name: str, what: str, label: str, numbers: Mapping[str, float]) -> Fact:
    values = tuple(Value(one, float(number)) for one, number in numbers.items())
    return Fact(name=name, what=what, values=values, label=label)


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """Of any daemon."""

    status: ControllerStatus | LearnerStatus
    traffic: Traffic
    is_connected: bool
    unconfirmed_bytes: int
    depths: Mapping[str, int] = field(default_factory=dict)
    """Messages that wait in the queues that it reads, as far as the broker says; by kind of queue."""

    def facts(self) -> Iterator[Fact]:
        """As metrics."""
        status, traffic = self.status, self.traffic
        yield _one("broker_connected", "1 while both connections to the broker work.", self.is_connected)
        yield _one("reconnects", "Lost connections that work again.", traffic.num_reconnects, is_counter=True)
        yield _one("received_bytes", "Message bodies from the broker.", traffic.bytes_in, is_counter=True)
        yield _one("sent_bytes", "Message bodies to the broker.", traffic.bytes_out, is_counter=True)
        yield _one("received_messages", "Messages from the broker.", traffic.messages_in, is_counter=True)
        yield _one("sent_messages", "Messages to the broker.", traffic.messages_out, is_counter=True)
        yield _one("unconfirmed_bytes", "Published, and not confirmed yet.", self.unconfirmed_bytes)
        yield _one(
            "broker_blocked", "1 while an alarm of the broker holds up what is sent.", traffic.is_blocked
        )
        yield _one(
            "broker_blocked_seconds", "Time that such alarms have cost.", traffic.blocked_s, is_counter=True
        )
        yield _one("calls_waiting", "Messages in this process that wait to be handled.", status.num_calls)
        yield _one("stalled_seconds", "Since the deciding thread last took a message.", status.stalled_s)
        yield _one(
            "learners", "Learners that are there; of a learner's process, those in it.", status.num_learners
        )
        yield _many("queue_messages", "Messages that wait in the broker.", "queue", self.depths)
        yield from _of_controller(status) if isinstance(status, ControllerStatus) else _of_learner(status)

    def ills(self) -> list[str]:
        """Why the daemon should be started anew; empty if it lives."""
        status = self.status
        found = ["it has ended"] if status.has_ended else []
        waits = isinstance(status, ControllerStatus) and status.is_without_store
        if status.stalled_s > STALLED_AFTER_S and not waits:
            found.append(f"it has decided nothing for {status.stalled_s:.0f} s")
        return found

    def problems(self) -> list[str]:
        """Why it is not ready; empty if it is."""
        found, status = self.ills(), self.status
        if not self.is_connected:
            found.append("the broker is not connected")
        if isinstance(status, ControllerStatus):
            if not (status.is_active or status.is_standby):
                found.append("it neither holds the lease nor stands by for it")
            if status.is_without_store:
                found.append("the store does not answer")
        return found


def _of_controller(status: ControllerStatus) -> Iterator[Fact]:
    yield _one("lease_held", "1 for the controller that works, 0 for one that stands by.", status.is_active)
    yield _one("lease_epoch", "Of the lease that it holds, or held; 0 before.", status.epoch)
    yield _one(
        "store_available", "0 while the store does not take what is written.", not status.is_without_store
    )
    yield _many("jobs", "Jobs that are known, by phase.", "phase", status.num_jobs)


def _of_learner(status: LearnerStatus) -> Iterator[Fact]:
    yield _one("welcomed", "1 once a controller has answered.", status.is_welcomed)
    yield _one("tasks_working", "Tasks that are worked on.", status.num_working)
    yield _one("tasks_waiting", "Tasks that wait for a worker.", status.num_waiting)
