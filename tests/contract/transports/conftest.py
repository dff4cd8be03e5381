"""Every implementation of ``Transport``: this folder holds what each of them promises."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker_fl.interfaces import Transport
from broker_fl.simulation.link import LinkedTransport
from broker_fl.topology import Queue
from broker_fl.transports.memory import MemoryBroker
from broker_fl.transports.rabbitmq import RabbitMQTransport
from tests.contract.transports.inbox import Connect, delete


@pytest.fixture(params=["memory", "linked", "rabbitmq"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes transports to one empty broker, and closes them."""
    opened: list[Transport] = []
    broker = MemoryBroker()
    if request.param == "memory":
        make: Connect = broker.connect
    elif request.param == "linked":

        def make() -> Transport:
            return LinkedTransport(broker.connect(), down_bytes_s=1e8, up_bytes_s=1e8, latency_s=0.001)
    else:
        url = request.getfixturevalue("amqp_url")

        def make() -> Transport:
            return RabbitMQTransport(url)

    def connect() -> Transport:
        opened.append(make())
        return opened[-1]

    yield connect
    for transport in opened:
        transport.close()


@pytest.fixture
def transport(connect: Connect) -> Transport:
    return connect()


@pytest.fixture
def name(federation: str) -> str:
    """The queue of most tests."""
    return f"bfl.{federation}.queue"


@pytest.fixture
def queue(transport: Transport, name: str) -> Iterator[str]:
    """A plain queue."""
    transport.declare([Queue(name=name)])
    yield name
    delete(transport, name)
