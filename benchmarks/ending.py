"""Nothing that a run started outlives it, however it ends."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "BROKER_FL_BENCH_RUN"
"""A variable that all processes of a run inherit, also those that become sessions of their own."""
ENDS_BY_ITSELF = "multiprocessing.resource_tracker"
"""When all others have ended."""
PR_SET_CHILD_SUBREAPER = 36
"""prctl(2)."""
ENDED_BY = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def of_run() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as an exception does; then whatever is still there is killed."""
    os.environ[MARK] = uuid.uuid4().hex
    by_exception()
    _adopt_orphans()
    try:
        yield
    finally:
        for one in kill_all(os.environ.pop(MARK)):
            print(f"Killed what was left over: {one}", file=sys.stderr)


def _adopt_orphans() -> None:
    """Have what our children leave behind become our children, so that its CPU time counts as ours."""
    with suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def by_exception() -> None:
    """Have the signals that end a process run its ``finally`` blocks; the second one changes nothing."""

    def end(number: int, _: object) -> None:
        for one in ENDED_BY:
            signal.signal(one, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for one in ENDED_BY:
        signal.signal(one, end)


def with_parent() -> None:
    """End this process of ``multiprocessing`` by SIGTERM when its parent is gone, killed or not."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="ends-with-parent", daemon=True).start()


def kill_all(run: str) -> list[str]:
    """Kill all processes of a run, or of a part of it, but this one; their commands. It needs /proc."""
    found: dict[int, str] = {}
    for _ in range(20):  # what was killed may have started something meanwhile
        left = dict(_of_run(run))
        if not left:
            break
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        found |= left
        time.sleep(0.1)
    return sorted(f"{pid}: {command}" for pid, command in found.items())


def _of_run(run: str) -> Iterator[tuple[int, str]]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (folder / "environ").read_bytes().split(b"\0")
            marked = any(one.startswith(f"{MARK}={run}".encode()) for one in variables)
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if marked and int(folder.name) != os.getpid() and ENDS_BY_ITSELF not in command:
                yield int(folder.name), command[:100]
