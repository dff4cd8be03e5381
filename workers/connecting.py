"""A daemon's way to its servers, which may come up after it."""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from broker_fl.errors import ServerUnavailable
from broker_fl.identity.accounts import Account
from broker_fl.security import Security
from broker_fl.stores.redis import RedisStore
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.workers.process import Signals

log = logging.getLogger(__name__)
R = TypeVar("R")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAccess:
    """Where the broker is, and how long to wait for a server that is not there yet."""

    url: str
    security: Security = field(default_factory=Security)
    connect_timeout_s: float = 60.0
    """0: for ever."""


def connect_broker(access: BrokerAccess, name: str, signals: Signals) -> RabbitMQTransport:
    """Connect, as soon as the broker is there.

    Raises:
        Stopped: by a signal.
        SettingError, AccessDenied: trying again changes nothing.
        BrokerUnavailable: it was not there in time.
    """
    return patiently(
        lambda: RabbitMQTransport(access.url, name=name, security=access.security),
        access.connect_timeout_s,
        signals,
    )


def check_login(transport: RabbitMQTransport) -> None:
    """Go on only if an enrolled account still opens the broker, as far as is known; of one that somebody made
    by hand it is not for us to say that it is gone.

    Raises:
        LoginRefused: it was refused again and again.
    """
    if transport.login_refused is not None and Account.of(transport.user) is not None:
        raise transport.login_refused


def open_store(
    url: str, federation: str, timeout_s: float, signals: Signals, security: Security
) -> RedisStore:
    """Connect to the store, as soon as it is there.

    Raises:
        Stopped: by a signal.
        SettingError, AccessDenied: trying again changes nothing.
        StoreUnavailable: it was not there in time.
    """
    return patiently(lambda: RedisStore(url, federation=federation, security=security), timeout_s, signals)


def patiently(connect: Callable[[], R], timeout_s: float, signals: Signals) -> R:
    """Try until a server answers; with ``timeout_s`` 0, for ever."""
    give_up_at = time.monotonic() + timeout_s if timeout_s else float("inf")
    for attempt in itertools.count():
        signals.check()
        try:
            return connect()
        except ServerUnavailable as error:
            pause_s = min(FIRST_PAUSE_S * 2 ** min(attempt, 10), LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)  # noqa: S311
            if time.monotonic() + pause_s > give_up_at:
                raise
            log.warning("%s; trying again", error)
            signals.wait(pause_s)
    raise AssertionError
