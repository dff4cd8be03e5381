"""What the jobs of a controller work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from broker_fl.coordination.membership import Membership
from broker_fl.extensions import OwnClasses
from broker_fl.interfaces import Store, Transport
from broker_fl.observer import NOBODY, Observer
from broker_fl.roles.controller.auditing import AuditLog
from broker_fl.roles.controller.job.versions import Versions
from broker_fl.roles.controller.places import Inbox, Keys
from broker_fl.roles.runtime import Clock
from broker_fl.roles.sender import Sender
from broker_fl.topology import Topology

T = TypeVar("T")


class Persist(Protocol):
    """Does something with the store, again and again until the store answers."""

    def __call__(self, operation: Callable[[], T]) -> T:
        """What ``operation`` gives."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Of one controller, while it holds the lease."""

    topology: Topology
    transport: Transport
    store: Store
    sender: Sender
    """For what is small."""
    bulk_sender: Sender
    """For models; nothing small waits behind them."""
    clock: Clock
    place: Inbox
    keys: Keys
    epoch: int
    post: Callable[[Callable[[], None]], None]
    """Have a call made on the controller's thread."""
    persist: Persist
    has_given_up: Callable[[], bool] = lambda: False
    """Whether ``persist`` gave up, so that memory is ahead of what is stored."""
    is_sure: Callable[[], bool]
    """Whether nobody else can have the lease at this moment."""
    members: Membership
    """Who is there; for the controller's thread."""
    own: OwnClasses = field(default_factory=OwnClasses)
    """Rules and selectors of the app file that the controller was started with."""
    observer: Observer = NOBODY
    audit: AuditLog
    """Who did what."""

    @property
    def inbox(self) -> str:
        """Where updates are to be sent, by the name that tasks bring."""
        return self.place.name

    def versions(self, job: str) -> Versions:
        """The model versions of a job."""
        return Versions(self.store, job, self.epoch)
