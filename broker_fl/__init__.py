"""Federated learning over a message broker. Importing this starts nothing and needs no server.

What most users need::

    from broker_fl import Update                      # what a learner's ``train`` gives back
    from broker_fl import JobSpec, Model, connect     # to submit jobs from Python
    from broker_fl.simulation import Federation       # a whole federation in one process
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker_fl.interfaces import Learner, LearnerContext, TaskContext, Update
from broker_fl.model import Model
from broker_fl.wire.job import JobSpec

if TYPE_CHECKING:
    from broker_fl.roles.driver import Driver
    from broker_fl.security import Security

__version__ = "0.1.0"
__all__ = ["JobSpec", "Learner", "LearnerContext", "Model", "TaskContext", "Update", "connect"]


def connect(
    url: str, federation: str = "default", *, timeout_s: float = 30.0, security: Security | None = None
) -> Driver:
    """Connect a driver to a federation through its broker.

    Args:
        url: ``amqp://user:password@host:port/vhost``, or ``amqps://`` for TLS.
        federation: its name.
        timeout_s: how long a request waits for the controller's answer.
        security: TLS files, a proxy, and whether plain text may leave the machine (``broker_fl.security``).

    Raises:
        SettingError: the URL is not usable, or the way there would be in plain text.
        AccessDenied: credentials, virtual host or a permission.
        BrokerUnavailable: the broker does not answer.
    """
    from broker_fl.roles.driver import Driver
    from broker_fl.transports.rabbitmq import RabbitMQTransport

    return Driver(RabbitMQTransport(url, name="driver", security=security), federation, timeout_s=timeout_s)
