"""The same bytes as a round's, by pika alone through a broker that is set up alike.

No frames, no checks, no arithmetic, no store: bodies of a mebibyte, one copy for all mailboxes by BCC on the
way down; on the way up to one inbox, one learner after the other, and once more all together. pika's blocking
connection, which is its fastest, receiving as much at a time as ours does.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import pika
from pika.adapters.utils import io_services_utils

from broker_fl.transports.rabbitmq.tuned import RECEIVE_BYTES

BODY_BYTES = 1 << 20
PREFETCH = 64
ACK_EVERY = 16
TIMEOUT_S = 1800.0
INBOX = "bare.inbox"
_SPAWN = multiprocessing.get_context("spawn")


def measure(url: str, num_learners: int, num_bytes: int) -> dict[str, float]:
    """Seconds for ``num_bytes`` to all learners, ``down_s``, and for as many from each of them, ``up_s``: the
    lesser of ``up_in_turn_s`` and ``up_together_s``.
    """
    count = -(-num_bytes // BODY_BYTES)
    with _connection(url) as connection:
        channel = connection.channel()
        for name in (INBOX, *map(_mailbox, range(num_learners))):
            channel.queue_declare(name, durable=True)
    pipes, processes = [], []
    for index in range(num_learners):
        pipe, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_learner, args=(theirs, url, index, count), daemon=True)
        process.start()
        theirs.close()
        pipes.append(pipe)
        processes.append(process)
    try:
        for pipe in pipes:
            _expect(pipe, "ready")
        down_s = _timed(lambda: _down(url, pipes, num_learners, count))
        in_turn_s = _timed(lambda: _up(url, [[pipe] for pipe in pipes], num_learners * count))
        together_s = _timed(lambda: _up(url, [pipes], num_learners * count))
        for pipe in pipes:
            pipe.send("end")
        for process in processes:
            process.join(30)
    finally:
        for process in processes:
            process.kill()
    _delete(url, num_learners)
    return {
        "down_s": down_s,
        "up_s": min(in_turn_s, together_s),
        "up_in_turn_s": in_turn_s,
        "up_together_s": together_s,
    }


def _down(url: str, pipes: list[Connection], num_learners: int, count: int) -> None:
    first, *others = map(_mailbox, range(num_learners))
    properties = pika.BasicProperties(delivery_mode=1, headers={"BCC": others})
    _publish(url, first, count, properties)
    for pipe in pipes:
        _expect(pipe, "received")


def _up(url: str, turns: Sequence[Sequence[Connection]], count: int) -> None:
    """Those of a turn upload together."""
    taker = threading.Thread(target=_take, args=(url, INBOX, count))
    taker.start()
    for pipes in turns:
        for pipe in pipes:
            pipe.send("upload")
        for pipe in pipes:
            _expect(pipe, "sent")
    taker.join()


def _learner(pipe: Connection, url: str, index: int, count: int) -> None:
    pipe.send("ready")
    _take(url, _mailbox(index), count)
    pipe.send("received")
    while pipe.recv() == "upload":
        _publish(url, INBOX, count, pika.BasicProperties(delivery_mode=1))
        pipe.send("sent")


def _publish(url: str, key: str, count: int, properties: pika.BasicProperties) -> None:
    body = bytes(BODY_BYTES)
    with _connection(url) as connection:
        channel = connection.channel()
        for _ in range(count):
            channel.basic_publish("", key, body, properties)


def _take(url: str, queue: str, count: int) -> None:
    with _connection(url) as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=PREFETCH)
        taken = 0

        def take(_: Any, method: Any, __: Any, ___: bytes) -> None:
            nonlocal taken
            taken += 1
            if taken % ACK_EVERY == 0 or taken == count:
                channel.basic_ack(method.delivery_tag, multiple=True)
            if taken == count:
                channel.stop_consuming()

        channel.basic_consume(queue, take)
        channel.start_consuming()


def _delete(url: str, num_learners: int) -> None:
    with _connection(url) as connection:
        channel = connection.channel()
        for name in (INBOX, *map(_mailbox, range(num_learners))):
            channel.queue_delete(name)


def _connection(url: str) -> pika.BlockingConnection:
    # All connections of this process are the bare loop's: it is called in one of its own.
    io_services_utils._AsyncTransportBase._MAX_RECV_BYTES = RECEIVE_BYTES  # noqa: SLF001
    return pika.BlockingConnection(pika.URLParameters(url))


def _mailbox(index: int) -> str:
    return f"bare.learner.{index}"


def _expect(pipe: Connection, word: str) -> None:
    if not pipe.poll(TIMEOUT_S):
        raise TimeoutError(f"no {word!r} within {TIMEOUT_S:g} s")
    if (said := pipe.recv()) != word:
        raise RuntimeError(f"{said!r} instead of {word!r}")


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
