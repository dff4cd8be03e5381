"""Clients of Flower's deployment engine: threads, in this process or in two of their own."""

from __future__ import annotations

import argparse
import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.peers.flower.app import ask_again_after, be_quiet, train
from benchmarks.peers.rounds import constant_of

CLIENT_PROCESSES = 2


@contextmanager
def clients(options: argparse.Namespace, address: str) -> Iterator[None]:
    """As many as the options say, each with a constant of its own to add."""
    constants = [constant_of(index) for index in range(options.learners)]
    if options.layout == "one":
        stop = threading.Event()
        threads = _start_clients(address, constants, options.poll_s, stop)
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(20)
        return
    spawn = multiprocessing.get_context("spawn")
    processes = []
    for first in range(CLIENT_PROCESSES):
        stopped = spawn.Event()
        arguments = (address, constants[first::CLIENT_PROCESSES], options.poll_s, stopped)
        processes.append((spawn.Process(target=_client_process, args=arguments), stopped))
    for process, _ in processes:
        process.start()
    try:
        yield
    finally:
        for _, stopped in processes:
            stopped.set()
        for process, _ in processes:
            process.join(20)
            process.kill()


def _client_process(address: str, constants: list[float], poll_s: float, stop: Any) -> None:
    be_quiet()
    ask_again_after(poll_s)
    done = threading.Event()
    threads = _start_clients(address, constants, poll_s, done)
    stop.wait()
    done.set()
    for thread in threads:
        thread.join(20)


def _start_clients(
    address: str, constants: list[float], poll_s: float, stop: threading.Event
) -> list[threading.Thread]:
    threads = [
        threading.Thread(target=_client, args=(address, constant, poll_s, stop), daemon=True)
        for constant in constants
    ]
    for thread in threads:
        thread.start()
    return threads


def _client(address: str, constant: float, poll_s: float, stop: threading.Event) -> None:
    """A SuperNode's loop (``start_client_internal``), with the answer given on the spot."""
    from flwr.supernode.fleet_http_connection import http_request_response

    with http_request_response(address, insecure=True) as connection:
        _, receive, send, _, _, pull_object, push_object, confirm = connection
        while not stop.is_set():
            if (received := receive()) is None:
                stop.wait(poll_s)
            else:
                _answer(received, constant, (send, pull_object, push_object, confirm))


def _answer(received: Any, constant: float, calls: tuple[Any, Any, Any, Any]) -> None:
    """Fetch the message's objects, train, and send the reply's."""
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_tree,
        iterate_object_tree,
        no_object_id_recompute,
    )
    from flwr.supercore.inflatable.inflatable_utils import (
        inflate_object_from_contents,
        pull_objects,
        push_objects,
    )

    send, pull_object, push_object, confirm = calls
    message, tree = received
    run_id, message_id = message.metadata.run_id, message.metadata.message_id
    contents = pull_objects(
        [one.object_id for one in iterate_object_tree(tree)],
        pull_object_fn=lambda object_id: pull_object(run_id, object_id),
    )
    confirm(run_id, message_id)
    whole = inflate_object_from_contents(message_id, contents)
    whole.metadata.__dict__["_message_id"] = message_id
    reply = train(whole, constant)
    del whole, contents
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects = get_all_nested_objects(reply)
        wanted, session_id = send(reply, get_object_tree(reply), 0.0)
        push_objects(
            objects,
            push_object_fn=lambda object_id, content: push_object(run_id, session_id, object_id, content),
            object_ids_to_push=wanted,
        )
