"""Learners as a process: one, or several virtual ones."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from broker_fl.apps import App
from broker_fl.errors import BrokerFLError, QueueInUse
from broker_fl.interfaces import Learner, LearnerContext
from broker_fl.roles.about import everywhere
from broker_fl.roles.learner import LazyLearners, LearnerHost, LearnerSettings
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.workers.connecting import BrokerAccess, check_login, connect_broker
from broker_fl.workers.logs import hide_passwords
from broker_fl.workers.memory import keep_freed_blocks
from broker_fl.workers.process import Signals, Stopped
from broker_fl.workers.watching import MetricsAddress, Watch, watch_learner

log = logging.getLogger(__name__)
_TAKEOVER_PAUSE_S = 2.0
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerOptions:
    """What the process is told."""

    broker: BrokerAccess
    ids: Sequence[str]
    settings: LearnerSettings = field(default_factory=LearnerSettings)
    drain_s: float = 30.0
    """How long a task that is worked on may take when the process is asked to end."""
    takeover_timeout_s: float = 150.0
    """How long to wait while another process reads a mailbox; a dead one is noticed after two heartbeats."""
    metrics: MetricsAddress | None = None
    """Where metrics and health are served; None: nowhere."""


def run_learners(app: App, options: LearnerOptions) -> None:
    """Be these learners until a signal comes: SIGTERM and SIGINT finish the task, say leave, and end.

    Raises:
        AppError: the app's factory does not make learners.
        SettingError, AccessDenied: trying again changes nothing; ``LoginRefused`` also when it happens later.
        BrokerUnavailable: the broker was not there in time.
    """
    keep_freed_blocks()
    everywhere(federation=options.settings.federation)
    if len(options.ids) == 1:
        everywhere(learner=options.ids[0])
    hide_passwords(options.broker.url)
    learners = make_learners(app, options.ids) if options.settings.group is None else lazy(app, options)
    with Signals() as signals, watch_learner(options.metrics, options.settings.federation) as watch:
        try:
            _run(learners, options, signals, watch)
        except Stopped as stopped:
            log.info("%s", stopped)


def make_learners(app: App, ids: Sequence[str]) -> dict[str, Learner]:
    """One for each id.

    Raises:
        AppError: the factory raises, or what it makes is not a learner.
    """
    return {
        name: app.make(LearnerContext(learner=name, index=index, count=len(ids)))
        for index, name in enumerate(ids)
    }


def lazy(app: App, options: LearnerOptions) -> Mapping[str, Learner]:
    """Learners of a group, made when they are worked on; one of each worker is kept beside those at work.

    Raises:
        AppError: the factory raises for the first one, or what it makes is not a learner.
    """
    learners = LazyLearners(options.ids, app.make, num_cached=2 * options.settings.num_workers)
    _ = learners[options.ids[0]]  # what is wrong with the app is said before anybody joins
    return learners


def group_ids(group: str, count: int) -> list[str]:
    """``host-1-0``, ``host-1-1`` and so on."""
    return [f"{group}-{index}" for index in range(count)]


def learner_ids(name: str, count: int) -> list[str]:
    """``site-1``, or for several of them ``site-1-0``, ``site-1-1`` and so on."""
    return [name] if count == 1 else [f"{name}-{index}" for index in range(count)]


def _run(learners: Mapping[str, Learner], options: LearnerOptions, signals: Signals, watch: Watch) -> None:
    transport, host = _join(learners, options, signals, watch)
    takes = "takes" if len(options.ids) == 1 else "take"
    log.info("%s %s tasks of federation %s", _names(options.ids), takes, options.settings.federation)
    drain_s = 0.0
    try:
        while not signals.wait(_LOOK_EVERY_S):
            watch.beat()
            check_login(transport)
            if host.error is not None:
                raise BrokerFLError(f"the learner ended: {host.error}") from host.error
        drain_s = options.drain_s
        log.info("finishing what is being worked on, for at most %g s", drain_s)
    finally:
        host.stop(drain_s=drain_s, reason="its process was asked to end")
        transport.close()
    log.info("the learner ends")


def _join(
    learners: Mapping[str, Learner], options: LearnerOptions, signals: Signals, watch: Watch
) -> tuple[RabbitMQTransport, LearnerHost]:
    """Connect and take tasks, as soon as nobody else reads the mailboxes."""
    give_up_at = time.monotonic() + options.takeover_timeout_s
    while True:
        transport = connect_broker(
            options.broker, f"{_names(options.ids)} of {options.settings.federation}", signals
        )
        host = LearnerHost(transport, learners, options.settings)
        host.observe(watch.observer)
        try:
            host.start()
            watch.role(host, transport)
            return transport, host
        except QueueInUse as error:
            transport.close()
            _wait_for_mailbox(error, options, give_up_at)
            signals.wait(_TAKEOVER_PAUSE_S)
        except BaseException:
            transport.close()
            raise


def _wait_for_mailbox(error: QueueInUse, options: LearnerOptions, give_up_at: float) -> None:
    """Complain; the process that reads it may be dead already, and the broker not know."""
    question = f"is another {_names(options.ids)} running?"
    left_s = give_up_at - time.monotonic()
    if left_s <= 0:
        raise QueueInUse(f"{question} {error}") from error
    log.warning("%s its mailbox is read by somebody else; waiting for up to %.0f s more", question, left_s)


def _names(ids: Sequence[str]) -> str:
    return f"learner {ids[0]}" if len(ids) == 1 else f"learners {ids[0]} and {len(ids) - 1} more"
