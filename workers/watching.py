"""How a daemon is watched: metrics and health over HTTP if they are asked for, and what systemd is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from typing import Self

from broker_fl.monitoring.http import Page, StatusServer
from broker_fl.monitoring.metrics import (
    CONTENT_TYPE,
    ControllerMetrics,
    LearnerMetrics,
    PresentCollector,
    exposition,
    new_registry,
)
from broker_fl.monitoring.present import Present
from broker_fl.observer import NOBODY, Observer
from broker_fl.roles.controller import Controller
from broker_fl.roles.learner import LearnerHost
from broker_fl.roles.status import ControllerStatus, LearnerStatus
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.workers.notify import Systemd

LOOPBACK = "127.0.0.1"
Metrics = type[ControllerMetrics] | type[LearnerMetrics]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsAddress:
    """Where metrics are served."""

    port: int
    """0: any free one, which the log names."""
    address: str = LOOPBACK


class Watch:
    """What others may know of a daemon, from its start to its end."""

    def __init__(self, where: MetricsAddress | None, metrics: Metrics, federation: str) -> None:
        """``metrics``: ``ControllerMetrics`` or ``LearnerMetrics``.

        Raises:
            SettingError: prometheus_client is missing, or nobody may listen there.
        """
        self.observer: Observer = NOBODY
        self._look: Callable[[], tuple[ControllerStatus | LearnerStatus, RabbitMQTransport]] | None = None
        self._systemd = Systemd()
        self._beat_at = 0.0
        self._was_ready = False
        self._stack = ExitStack()
        self._server: StatusServer | None = None
        if where is not None:
            self._serve(where, metrics, federation)

    def _serve(self, where: MetricsAddress, metrics: Metrics, federation: str) -> None:
        registry = new_registry("controller" if metrics is ControllerMetrics else "learner", federation)
        self.observer = metrics(registry)
        registry.register(PresentCollector(lambda: self._present(with_depths=True)))
        pages = {
            "/metrics": lambda: Page(HTTPStatus.OK, exposition(registry), CONTENT_TYPE),
            "/healthz": lambda: Page.of(self.ills()),
            "/readyz": lambda: Page.of(self.problems()),
        }
        self._server = StatusServer(where.address, where.port, pages)

    def __enter__(self) -> Self:
        if self._server is not None:
            self._stack.enter_context(self._server)
        return self

    def __exit__(self, *_: object) -> None:
        self._systemd.tell("STOPPING=1")
        self._stack.close()

    def role(self, role: Controller | LearnerHost, transport: RabbitMQTransport) -> None:
        """Watch this role from now on."""
        self._look = lambda: (role.status(), transport)

    def beat(self) -> None:
        """Tell systemd that the process lives, and when it has become ready; call it once a second or so."""
        if not self._was_ready and not self.problems():
            self._was_ready = True
            self._systemd.tell("READY=1")
        now = time.monotonic()
        if self._systemd.watchdog_s and now >= self._beat_at and not self.ills():
            self._beat_at = now + self._systemd.watchdog_s / 3
            self._systemd.tell("WATCHDOG=1")

    def ills(self) -> list[str]:
        """Why it should be started anew."""
        present = self._present(with_depths=False)
        return present.ills() if present is not None else []

    def problems(self) -> list[str]:
        """Why it is not ready."""
        present = self._present(with_depths=False)
        return present.problems() if present is not None else ["it is not connected to its servers yet"]

    def _present(self, *, with_depths: bool) -> Present | None:
        if self._look is None:
            return None
        status, transport = self._look()
        names = status.queues if with_depths else {}
        return Present(
            status=status,
            traffic=transport.traffic,
            is_connected=transport.is_connected,
            unconfirmed_bytes=transport.unconfirmed_bytes,
            depths={kind: n for kind, name in names.items() if (n := transport.depth(name)) is not None},
        )


def watch_controller(where: MetricsAddress | None, federation: str) -> Watch:
    """See ``Watch``."""
    return Watch(where, ControllerMetrics, federation)


def watch_learner(where: MetricsAddress | None, federation: str) -> Watch:
    """See ``Watch``."""
    return Watch(where, LearnerMetrics, federation)
