"""What an account may do on the broker: the narrowest permissions its role can work with.

RabbitMQ takes regular expressions over names of exchanges and queues (``configure``: make and delete;
``write``: publish, bind a queue; ``read``: consume, purge, bind to an exchange), and for topic exchanges over
routing keys (https://www.rabbitmq.com/docs/access-control). Names hold nothing that is special in one, but
for the dots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from broker_fl.identity.accounts import Account
from broker_fl.topology import Topology

NOTHING = "^$"
_ID = "[A-Za-z0-9_-]+"
_GENERATION = r"(\.[0-9]+)?"
"""Of a mailbox whose node was down."""
_DRIVER_SUFFIX = "-[0-9a-f]{12}"
_WATCHER_SUFFIX = f"{_DRIVER_SUFFIX}-[0-9a-f]{{8}}"


@dataclass(frozen=True, slots=True)
class TopicPermission:
    """Routing keys on one topic exchange: those to publish with, and those to bind with."""

    write: str = NOTHING
    read: str = NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """Of one account, on the federation's virtual host. An account has none on any other."""

    configure: str = NOTHING
    write: str = NOTHING
    read: str = NOTHING
    topics: Mapping[str, TopicPermission] = field(default_factory=dict)
    """By exchange."""
    max_connections: int
    max_channels: int


def permissions_of(account: Account) -> Permissions:
    """What an account of this role and name is given."""
    topology = Topology(account.federation)
    if account.has_mailbox:
        return _of_learner(topology, account.name)
    if account.asks:
        return _of_driver(topology, account.name, submits=account.role == "driver")
    return _of_controller(topology)


def _of_learner(topology: Topology, name: str) -> Permissions:
    """A learner uses two connections; those that died without a word are counted until the broker notices."""
    own = TopicPermission(write=rf"^{name}\.")
    return Permissions(
        write=_any_of([topology.updates, topology.reports]),
        read=f"^{_plain(topology.mailbox(name))}{_GENERATION}$",
        topics={topology.updates: own, topology.reports: own},
        max_connections=10,
        max_channels=50,
    )


def _of_driver(topology: Topology, name: str, *, submits: bool) -> Permissions:
    """To bind its queues a driver writes to them and reads from the exchange; never from ``tasks``."""
    driver = f"{name}{_DRIVER_SUFFIX}"
    answers, events = _plain(topology.driver_queue("")), _plain(topology.event_queue(""))
    queues = f"({answers}{driver}|{events}{name}{_WATCHER_SUFFIX})"
    exchanges = [topology.control, *([topology.updates] if submits else [])]
    topics = {topology.answers: TopicPermission(read=f"^{driver}$")}
    if submits:
        topics[topology.updates] = TopicPermission(write=rf"^{driver}\.")
    return Permissions(
        configure=f"^{queues}$",
        write=f"^({queues}|{_alternatives(exchanges)})$",
        read=f"^({queues}|{_alternatives([topology.answers, topology.events])})$",
        topics=topics,
        max_connections=40,
        max_channels=400,
    )


def _of_controller(topology: Topology) -> Permissions:
    """All of its federation, but that it cannot read a mailbox, nor what drivers and watchers are told."""
    inboxes = _plain(topology.inbox("")) + _ID
    mailboxes = _plain(topology.mailbox("")) + _ID + _GENERATION
    shared = [topology.reports, topology.control, topology.dead]
    outward = [topology.tasks, topology.answers, topology.events]
    return Permissions(
        configure=f"^({_alternatives([*outward, topology.updates, *shared])}|{inboxes}|{mailboxes})$",
        write=f"^({_alternatives([*outward, *shared])}|{inboxes}|{mailboxes})$",
        read=f"^({_alternatives([topology.tasks, topology.updates, *shared])}|{inboxes})$",
        max_connections=20,
        max_channels=200,
    )


def _any_of(names: Iterable[str]) -> str:
    return f"^({_alternatives(names)})$"


def _alternatives(names: Iterable[str]) -> str:
    return "|".join(_plain(name) for name in names)


def _plain(name: str) -> str:
    return name.replace(".", r"\.")
