"""Flower: its deployment engine, and its simulation on Ray.

The deployment engine is its SuperLink (HTTP API, state in memory), a ServerApp with its FedAvg on its grid,
and its own client library; the message that a SuperNode would hand on to the process of a ClientApp is
answered in the thread that fetched it, so neither the start of processes nor the way through them counts.
Who waits asks again after ``--poll-s``: Flower's own 3 s are constants in its code (``SuperNode`` and
``HttpGrid``), and so is the second after which an object that is still on its way is asked for again, which
is made as short as the poll. Clients return weights of their own: the SuperLink stores objects by content,
and skips an upload that it has already.
"""

from __future__ import annotations

import time

BEGAN_S = time.perf_counter()

import argparse  # noqa: E402
import logging  # noqa: E402
import multiprocessing  # noqa: E402
import socket  # noqa: E402
import threading  # noqa: E402
from collections.abc import Iterable, Iterator, Mapping  # noqa: E402
from contextlib import ExitStack, contextmanager, suppress  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from typing import Any  # noqa: E402

from benchmarks.peers import Peer  # noqa: E402

PEER = Peer(
    name="flower",
    title="Flower 1.41",
    # 1.42 asks for a certifi that the package index does not have yet (November 2026).
    packages=(
        "flwr[simulation]==1.41.0",
        "ray==2.55.1",
        "numpy==2.4.6",
        "protobuf==6.33.6",
        "fastapi==0.138.2",
        "uvicorn==0.49.0",
        "uvloop==0.23.0",
        "httptools==0.9.0",
        "httpx==0.28.1",
        "certifi==2026.10.18",
    ),
    environment={
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    },
)
DEFAULT_POLL_S = 3.0
DEFAULT_BACKOFF_S = 1.0
LAYOUTS = ("one", "several")
"""All in one process; or SuperLink, ServerApp and two processes of clients, as ours are laid out."""
CLIENT_PROCESSES = 2
START_TIMEOUT_S = 300.0


def main() -> None:
    """Measure one cell."""
    from benchmarks.peers.rounds import parser_of_rounds, write_result

    parser = parser_of_rounds(__doc__)
    parser.add_argument("engine", choices=("deployment", "simulation"))
    parser.add_argument("--poll-s", type=float, default=DEFAULT_POLL_S)
    parser.add_argument("--layout", choices=LAYOUTS, default="one")
    parser.add_argument("--cpus", type=float, default=1.0, help="that Ray reserves for a client")
    options = parser.parse_args()
    be_quiet()
    measure = measure_deployment if options.engine == "deployment" else measure_simulation
    write_result(options.out, measure(options), ("flwr", "ray", "numpy", "protobuf", "uvicorn", "fastapi"))


# ---------------------------------------------------------------- what both engines run


class TimedRounds:
    """A ServerApp's work: FedAvg over all clients, each round's end noted; the final model is checked."""

    def __init__(self, options: argparse.Namespace) -> None:
        from benchmarks.peers.rounds import RoundClock

        self._options = options
        self.clock = RoundClock(BEGAN_S, options.limit_s, options.least)
        self._newest: Any = None

    def run(self, grid: Any) -> None:
        """All rounds."""
        from flwr.serverapp.strategy import FedAvg

        from benchmarks.peers.rounds import Enough, check_weights, initial_weights

        num_learners = self._options.learners
        strategy = FedAvg(
            fraction_evaluate=0.0, min_train_nodes=num_learners, min_available_nodes=num_learners
        )
        with suppress(Enough):
            strategy.start(
                grid=grid,
                initial_arrays=record(initial_weights(self._options.parameters)),
                num_rounds=self._options.rounds + 1,
                evaluate_fn=self._round_ended,
            )
        final = {name: array.numpy() for name, array in self._newest.items()}
        check_weights(final, num_learners, self.clock.num_rounds)

    def _round_ended(self, round: int, arrays: Any) -> None:
        """Flower calls it with the initial model as round 0, then after each aggregation."""
        if round > 0:
            self._newest = arrays
            self.clock.tick()


def train(message: Any, constant: float) -> Any:
    """What a client answers."""
    from flwr.app import Message, MetricRecord, RecordDict

    from benchmarks.peers.rounds import add_constant

    weights = {name: array.numpy() for name, array in message.content["arrays"].items()}
    add_constant(weights, constant)
    content = RecordDict({"arrays": record(weights), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content=content, reply_to=message)


def record(weights: Mapping[str, Any]) -> Any:
    """Flower's form of the model."""
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({name: Array(array) for name, array in weights.items()})


def ask_again_after(poll_s: float) -> None:
    """For objects that are still on their way; Flower's own is 1 s."""
    from flwr.supercore.inflatable.inflatable_utils import pull_objects

    assert pull_objects.__kwdefaults__["initial_backoff"] == DEFAULT_BACKOFF_S
    pull_objects.__kwdefaults__["initial_backoff"] = min(poll_s, DEFAULT_BACKOFF_S)


def be_quiet() -> None:
    """Have Flower write errors only; importing it sets its level anew."""
    import flwr.supercore.logger  # noqa: F401

    logging.getLogger("flwr").setLevel(logging.ERROR)


# ---------------------------------------------------------------- deployment engine


def measure_deployment(options: argparse.Namespace) -> dict[str, object]:
    """SuperLink, ServerApp and clients, over HTTP on this machine."""
    ask_again_after(options.poll_s)
    with ExitStack() as stack:
        started = stack.enter_context(_superlink(options.layout))
        stack.enter_context(_clients(options, started.address))
        grid = stack.enter_context(_grid(started, options.poll_s))
        _wait_for_nodes(grid, options.learners)
        rounds = TimedRounds(options)
        rounds.run(grid)
    return rounds.clock.result()


@dataclass(frozen=True)
class SuperLink:
    """One that runs, and the run it has for us."""

    address: str
    run: Any
    token: str


@contextmanager
def _superlink(layout: str) -> Iterator[SuperLink]:
    if layout == "one":
        with _serve() as started:
            yield started
        return
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_superlink_process, args=(theirs,))
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send("stop")
        process.join(20)
        process.kill()


def _superlink_process(pipe: Any) -> None:
    be_quiet()
    with _serve() as started:
        pipe.send(started)
        pipe.recv()


@contextmanager
def _serve() -> Iterator[SuperLink]:
    """The SuperLink's own web application, with its defaults, and a run that is under way."""
    import uvicorn
    from flwr.app.user_config import UserConfig
    from flwr.common.constant import NOOP_FLWR_AID
    from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
    from flwr.superlink.main import create_app

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = create_app()
    settings = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", access_log=False)
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while not server.started:
        if time.monotonic() > give_up_at:
            raise TimeoutError("the SuperLink did not start")
        time.sleep(0.01)
    state = app.state.linkstate_factory.state()
    run_id = state.create_run(
        None, None, None, UserConfig(), NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
    )
    (run,) = state.get_run_info(run_ids=[run_id])
    token = state.claim_task(run.primary_task_id)
    assert state.activate_task(run.primary_task_id)
    try:
        yield SuperLink(address=f"127.0.0.1:{port}", run=run, token=token)
    finally:
        server.should_exit = True
        thread.join(10)


@contextmanager
def _grid(superlink: SuperLink, poll_s: float) -> Iterator[Any]:
    """Flower's grid, which asks again after ``poll_s`` instead of 3 s; its loop is the original's."""
    from flwr.common.constant import SUPERLINK_NODE_ID
    from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.superlink.grid import HttpGrid

    class PollingGrid(HttpGrid):  # type: ignore[misc,unused-ignore]
        def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> Iterable[Any]:
            awaited = set(self.push_messages(messages))
            del messages
            give_up_at = time.time() + (timeout or 0.0)
            replies: list[Any] = []
            while timeout is None or time.time() < give_up_at:
                arrived = self.pull_messages(awaited)
                replies.extend(arrived)
                awaited.difference_update({one.metadata.reply_to_message_id for one in arrived})
                if not awaited:
                    break
                time.sleep(poll_s)
            return replies

    grid = PollingGrid(superlink.address, insecure=True, token=superlink.token)
    grid.set_run(superlink.run)
    TaskIdentity.task_id = superlink.run.primary_task_id
    TaskIdentity.run_id = superlink.run.run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(grid._runtime_client))  # noqa: SLF001
    heartbeat.start()
    try:
        yield grid
    finally:
        heartbeat.stop()
        grid.close()


def _wait_for_nodes(grid: Any, num_learners: int) -> None:
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while len(list(grid.get_node_ids())) < num_learners:
        if time.monotonic() > give_up_at:
            raise TimeoutError("not all clients joined")
        time.sleep(0.05)


@contextmanager
def _clients(options: argparse.Namespace, address: str) -> Iterator[None]:
    constants = [float(index + 1) for index in range(options.learners)]
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


# ---------------------------------------------------------------- simulation


def measure_simulation(options: argparse.Namespace) -> dict[str, object]:
    """``run_simulation`` with its Ray backend; Ray keeps one actor for each ``--cpus`` of the machine."""
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    rounds = TimedRounds(options)
    server_app, client_app = ServerApp(), ClientApp()

    @server_app.main()  # type: ignore[untyped-decorator,unused-ignore]
    def run_server(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower calls it so
        _wait_for_nodes(grid, options.learners)
        rounds.run(grid)

    @client_app.train()  # type: ignore[untyped-decorator,unused-ignore]
    def answer(message: Message, context: Context) -> Message:
        return train(message, float(context.node_config["partition-id"]) + 1)

    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=options.learners,
        backend_config={"client_resources": {"num_cpus": options.cpus, "num_gpus": 0.0}},
    )
    return rounds.clock.result()


if __name__ == "__main__":
    main()
