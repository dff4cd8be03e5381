"""Flower's SuperLink, and the grid through which a ServerApp reaches the clients."""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.flower.app import be_quiet

START_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class SuperLink:
    """One that runs, and the run it has for us."""

    address: str
    run: Any
    token: str


@contextmanager
def superlink(layout: str) -> Iterator[SuperLink]:
    """Flower's SuperLink, in this process or in one of its own (``LAYOUTS``)."""
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
def grid_of(superlink: SuperLink, poll_s: float) -> Iterator[Any]:
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


def wait_for_nodes(grid: Any, num_learners: int) -> None:
    """Until as many clients have joined."""
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while len(list(grid.get_node_ids())) < num_learners:
        if time.monotonic() > give_up_at:
            raise TimeoutError("not all clients joined")
        time.sleep(0.05)
