"""Parts of the RabbitMQ transport that need no broker."""

from __future__ import annotations

import inspect
from itertools import islice

import pytest
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.base_connection import BaseConnection
from pika.adapters.utils import io_services_utils

from broker_fl.topology import Queue
from broker_fl.transports.rabbitmq.channel import queue_arguments
from broker_fl.transports.rabbitmq.io import IoThread, backoff


def test_pika_still_has_what_the_tuned_connection_changes() -> None:
    assert io_services_utils._AsyncTransportBase._MAX_RECV_BYTES == 4096
    assert "_MAX_RECV_BYTES" in inspect.getsource(io_services_utils._AsyncTransportBase._consume)
    assert "self._transport = transport" in inspect.getsource(BaseConnection._proto_connection_made)
    assert list(inspect.signature(AsyncioConnection._output_marshaled_frames).parameters)[1:] == [
        "marshaled_frames"
    ]


def test_delays_double_up_to_the_longest_with_jitter() -> None:
    delays = list(islice(backoff(0.1, 30.0), 20))
    for delay_s, longest_s in zip(delays, [0.1 * 2**n for n in range(20)], strict=True):
        assert min(longest_s, 30.0) / 2 <= delay_s <= min(longest_s, 30.0)


@pytest.mark.parametrize(
    ("queue", "arguments"),
    [
        (Queue(name="q"), {"x-queue-type": "classic"}),
        (
            Queue(name="q", quorum=True, single_active_consumer=True, dead_letter_exchange="d"),
            {"x-queue-type": "quorum", "x-single-active-consumer": True, "x-dead-letter-exchange": "d"},
        ),
        (
            Queue(name="q", expires_s=1.5, message_ttl_s=0.25, max_length_bytes=7, overflow="reject-publish"),
            {
                "x-queue-type": "classic",
                "x-expires": 1500,
                "x-message-ttl": 250,
                "x-max-length-bytes": 7,
                "x-overflow": "reject-publish",
            },
        ),
    ],
)
def test_a_queue_is_declared_with_arguments_that_every_broker_takes(
    queue: Queue, arguments: dict[str, object]
) -> None:
    assert queue_arguments(queue) == arguments


def test_calling_the_transport_from_its_own_thread_is_an_error_and_no_deadlock() -> None:
    io = IoThread("test")

    async def inner() -> None:
        pass

    async def outer() -> None:
        io.run(inner(), 1.0)

    with pytest.raises(RuntimeError, match="sink"):
        io.run(outer(), 5.0)
    io.stop(5.0)
