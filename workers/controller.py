"""The controller as a process."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from broker_fl.extensions import OwnClasses
from broker_fl.roles.about import everywhere
from broker_fl.roles.controller import Controller, ControllerSettings
from broker_fl.security import Security
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.workers.connecting import BrokerAccess, check_login, connect_broker, open_store
from broker_fl.workers.logs import hide_passwords
from broker_fl.workers.memory import keep_freed_blocks
from broker_fl.workers.process import Signals, Stopped
from broker_fl.workers.watching import MetricsAddress, Watch, watch_controller

log = logging.getLogger(__name__)
STOP_TIMEOUT_S = 30.0
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerOptions:
    """What the process is told."""

    broker: BrokerAccess
    store: str
    store_security: Security = field(default_factory=Security)
    settings: ControllerSettings = field(default_factory=ControllerSettings)
    own: OwnClasses = field(default_factory=OwnClasses)
    """Rules and selectors that jobs may name besides those of the library."""
    metrics: MetricsAddress | None = None
    """Where metrics and health are served; None: nowhere."""


def run_controller(options: ControllerOptions) -> None:
    """Be a controller until a signal comes: SIGTERM and SIGINT end it in good order; jobs stay in the store.

    Raises:
        SettingError, AccessDenied: trying again changes nothing.
        ServerUnavailable: a server was not there in time.
        Fenced: another controller took over.
    """
    keep_freed_blocks()
    everywhere(federation=options.settings.federation)
    hide_passwords(options.broker.url, options.store)
    with Signals() as signals, watch_controller(options.metrics, options.settings.federation) as watch:
        try:
            _run(options, signals, watch)
        except Stopped as stopped:
            log.info("%s", stopped)


def _run(options: ControllerOptions, signals: Signals, watch: Watch) -> None:
    federation, wait_s = options.settings.federation, options.broker.connect_timeout_s
    store = open_store(options.store, federation, wait_s, signals, options.store_security)
    try:
        transport = connect_broker(options.broker, f"controller of {federation}", signals)
        controller = Controller(transport, store, options.settings, options.own)
        controller.observe(watch.observer)
        watch.role(controller, transport)
        controller.start()
        try:
            _wait(controller, transport, signals, watch)
        finally:
            controller.stop()
            if not controller.wait(STOP_TIMEOUT_S):
                log.warning("not everything was done within %g s", STOP_TIMEOUT_S)
            transport.close()
    finally:
        store.close()
    if controller.error is not None and signals.first is None:
        raise controller.error
    log.info("the controller ends; jobs go on with the next one")


def _wait(controller: Controller, transport: RabbitMQTransport, signals: Signals, watch: Watch) -> None:
    """Until a signal comes, or the controller ends by itself.

    Raises:
        LoginRefused: its account was revoked or rotated.
    """
    while not signals.wait(_LOOK_EVERY_S):
        watch.beat()
        check_login(transport)
        if controller.wait(0):
            return
