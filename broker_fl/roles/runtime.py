"""What roles have of the machine that they run on: threads, time and names. Nothing else in them blocks or
asks what time it is; so the fault simulation (``tests/simulation``) can run them on a clock of its own. Locks
are the machine's own: who holds one calls nothing that waits.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Thread(Protocol):
    """See ``threading.Thread``."""

    @property
    def name(self) -> str: ...

    def start(self) -> None: ...

    def is_alive(self) -> bool: ...

    def join(self, timeout: float | None = None) -> None: ...


class Event(Protocol):
    """See ``threading.Event``."""

    def set(self) -> None: ...

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool: ...


class Waiting(Protocol[T]):
    """See ``queue.SimpleQueue``; ``get`` raises ``queue.Empty`` after ``timeout``."""

    def put(self, item: T) -> None: ...

    def get(self, block: bool = True, timeout: float | None = None) -> T: ...

    def get_nowait(self) -> T: ...

    def empty(self) -> bool: ...

    def qsize(self) -> int: ...


class Workers(Protocol):
    """See ``concurrent.futures.Executor``; nobody asks what came of a call."""

    def submit(self, call: Callable[..., None], /, *args: Any) -> object: ...

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None: ...


class Runtime(Protocol):
    """What a process is made of."""

    def thread(self, run: Callable[[], None], name: str) -> Thread:
        """One that does not keep the process alive; not started yet."""
        ...

    def current(self) -> Thread:
        """The thread that asks."""
        ...

    def event(self) -> Event:
        """Not set."""
        ...

    def queue(self) -> Waiting[Any]:
        """Empty, and without a limit."""
        ...

    def workers(self, count: int, name: str) -> Workers:
        """So many threads that take calls from one queue."""
        ...

    def wall_s(self) -> float:
        """Seconds since 1970 by the machine's clock, which may jump."""
        ...

    def steady_s(self) -> float:
        """Seconds since some moment, as exact as there are; never going back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        ...

    def unique(self) -> str:
        """32 hexadecimal digits that nobody else has."""
        ...


class Threads:
    """The machine as it is."""

    event = staticmethod(threading.Event)
    current = staticmethod(threading.current_thread)
    wall_s = staticmethod(time.time)
    steady_s = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)

    def thread(self, run: Callable[[], None], name: str) -> threading.Thread:
        return threading.Thread(target=run, name=name, daemon=True)

    def workers(self, count: int, name: str) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(count, thread_name_prefix=name)

    def queue(self) -> queue.SimpleQueue[Any]:
        return queue.SimpleQueue()

    def unique(self) -> str:
        return uuid.uuid4().hex


THREADS: Runtime = Threads()
"""What every process has."""


class Clock:
    """Unix time at the start, and steady from there: a jump of the machine's clock moves no deadline."""

    def __init__(self, runtime: Runtime = THREADS) -> None:
        self.steady_s = runtime.steady_s
        self._offset = runtime.wall_s() - runtime.steady_s()

    def now(self) -> float:
        """Seconds since 1970, never going back."""
        return self._offset + self.steady_s()
