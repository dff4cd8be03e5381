"""What lives in virtual time: processes whose threads are greenlets, of which one runs at a time, until it
waits.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from greenlet import getcurrent, greenlet

from tests.simulation.kernel import Call, Died, Kernel, Violation

EPOCH_S = 1_700_000_000.0
MAX_WAITING = 4_000
"""Items in one queue between threads: what prefetch lets in is far below."""
TICK_S = 1e-6
JITTER_S = 0.0005


class Waiter:
    """One thread that waits, once."""

    __slots__ = ("done", "thread")

    def __init__(self, thread: greenlet) -> None:
        self.thread = thread
        self.done = False


class Process:
    """An operating system's process, with the ``Runtime`` that roles in it are given."""

    def __init__(self, kernel: Kernel, name: str, *, skew_s: float = 0.0) -> None:
        self.kernel = kernel
        self.name = name
        self.alive = True
        self.frozen = False
        self.on_death: list[Call] = []
        self.max_waiting = 0
        self._skew_s = skew_s
        self._held_back: list[Call] = []
        self._greenlets: dict[greenlet, SimThread] = {}
        self._main = SimThread(self, lambda: None, "main")
        kernel.processes.append(self)

    # ------------------------------------------------------------ what happens to it

    def after(self, delay_s: float, call: Call) -> None:
        """Have something happen in this process, if it lives then, and once it is not frozen."""
        self.kernel.after(delay_s, partial(self.take, call))

    def take(self, call: Call) -> None:
        """Have it happen now."""
        if not self.alive:
            return
        if self.frozen:
            self._held_back.append(call)
        else:
            call()

    def freeze(self) -> None:
        """As SIGSTOP does."""
        self.frozen = True
        self.kernel.note(self.name, "FROZEN")

    def thaw(self) -> None:
        """As SIGCONT does: all that has come meanwhile is there at once."""
        if not self.alive or not self.frozen:
            return
        self.frozen = False
        self.kernel.note(self.name, "THAWED")
        held_back, self._held_back = self._held_back, []
        for call in held_back:
            self.after(0.0, call)

    def kill(self) -> None:
        """As ``kill -9`` does. From one of its own threads it does not come back."""
        if not self.alive:
            return
        self.alive = False
        self.kernel.note(self.name, "DIED")
        if self.kernel.on_hub():
            self._end()
        else:
            self.kernel.after(0.0, self._end)
            if getcurrent() in self._greenlets:
                raise Died

    def _end(self) -> None:
        for thread in list(self._greenlets):
            if thread:  # it has begun, and is not over
                thread.throw(Died)
        self._greenlets.clear()
        for call in self.on_death:
            call()

    def check(self) -> None:
        """End the thread that asks, if its process is dead."""
        if not self.alive:
            raise Died

    # ------------------------------------------------------------ waiting

    def waiter(self) -> Waiter:
        """For the thread that asks."""
        self.check()
        self.kernel.check_not_hub()
        return Waiter(getcurrent())

    def park(self, waiter: Waiter, timeout_s: float | None = None) -> bool:
        """Wait until ``wake``; False after ``timeout_s``."""
        if timeout_s is not None:
            self.after(max(0.0, timeout_s), partial(self._fire, waiter, False))
        self.kernel.num_spins = 0
        woken = bool(self.kernel.hub.switch())
        self.check()
        return woken

    def wake(self, waiter: Waiter) -> None:
        """Have a thread go on, a moment later."""
        if not waiter.done:
            waiter.done = True
            self.after(self.kernel.draw.random() * JITTER_S, partial(self._switch, waiter.thread, True))

    def _fire(self, waiter: Waiter, value: bool) -> None:
        if not waiter.done:
            waiter.done = True
            self._switch(waiter.thread, value)

    def _switch(self, thread: greenlet, value: object) -> None:
        if not thread.dead:
            thread.switch(value)

    def spawn(self, thread: SimThread) -> None:
        """Begin a thread."""
        body = greenlet(thread.body, self.kernel.hub)
        self._greenlets[body] = thread
        self.after(self.kernel.draw.random() * JITTER_S, partial(self._switch, body, None))

    def ended(self, thread: SimThread) -> None:
        """It is over."""
        self._greenlets.pop(getcurrent(), None)

    # ------------------------------------------------------------ the runtime that roles are given

    def thread(self, run: Callable[[], None], name: str) -> SimThread:
        return SimThread(self, run, name)

    def current(self) -> SimThread:
        return self._greenlets.get(getcurrent(), self._main)

    def event(self) -> SimEvent:
        return SimEvent(self)

    def queue(self) -> SimQueue:
        return SimQueue(self)

    def workers(self, count: int, name: str) -> SimWorkers:
        return SimWorkers(self, name)

    def wall_s(self) -> float:
        return EPOCH_S + self.kernel.now + self._skew_s

    def steady_s(self) -> float:
        return self.kernel.now

    def sleep(self, seconds: float) -> None:
        self.park(self.waiter(), seconds)

    def unique(self) -> str:
        return f"{self.kernel.draw.getrandbits(128):032x}"


class SimThread:
    """See ``threading.Thread``."""

    def __init__(self, process: Process, run: Callable[[], None], name: str) -> None:
        self.name = name
        self._process = process
        self._run = run
        self._started = False
        self._over = SimEvent(process)

    def start(self) -> None:
        self._started = True
        self._process.spawn(self)

    def is_alive(self) -> bool:
        return self._started and not self._over.is_set()

    def join(self, timeout: float | None = None) -> None:
        self._over.wait(timeout)

    def body(self, _: object = None) -> None:
        """What its greenlet does."""
        try:
            if self._process.alive:
                self._run()
        except Died:
            pass
        except BaseException as error:  # noqa: BLE001 - it ends the run
            violation = Violation(f"thread {self.name} of {self._process.name} ended with {error!r}")
            violation.__cause__ = error
            kernel = self._process.kernel
            kernel.violation = kernel.violation or violation
        finally:
            self._process.ended(self)
            self._over.set()


class SimEvent:
    """See ``threading.Event``."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._is_set = False
        self._waiters: list[Waiter] = []

    def set(self) -> None:
        self._is_set = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            self._process.wake(waiter)

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        self._process.check()
        if not self._is_set:
            waiter = self._process.waiter()
            self._waiters.append(waiter)
            self._process.park(waiter, timeout)
        return self._is_set


class SimQueue:
    """See ``queue.SimpleQueue``."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._items: deque[Any] = deque()
        self._waiters: deque[Waiter] = deque()

    def put(self, item: Any) -> None:
        process = self._process
        if not process.alive:
            return
        self._items.append(item)
        if len(self._items) > process.max_waiting:
            process.max_waiting = len(self._items)
            if process.max_waiting > MAX_WAITING:
                raise Violation(f"{process.max_waiting} calls wait in one queue of {process.name}")
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done:
                process.wake(waiter)
                break

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        process = self._process
        process.check()
        if self._items and process.kernel.unlucky(0.1):  # another thread gets its turn in between
            process.sleep(process.kernel.draw.random() * JITTER_S)
        # A wait so short that the sum is rounded away would be none.
        until = None if timeout is None else process.kernel.now + (max(timeout, TICK_S) if timeout else 0.0)
        while not self._items:
            left = None if until is None else until - process.kernel.now
            if left is not None and left <= 0:
                process.kernel.spin(process.name)
                raise queue.Empty
            waiter = process.waiter()
            self._waiters.append(waiter)
            if not process.park(waiter, left) and not self._items:
                raise queue.Empty
        return self._items.popleft()

    def get_nowait(self) -> Any:
        return self.get(timeout=0.0)

    def empty(self) -> bool:
        return not self._items

    def qsize(self) -> int:
        return len(self._items)

    @property
    def is_waited_for(self) -> bool:
        """Whether a thread is in ``get``, with nothing to be had."""
        return not self._items and any(not waiter.done for waiter in self._waiters)


class SimWorkers:
    """See ``concurrent.futures.ThreadPoolExecutor``; its users give it no more calls than it has threads."""

    def __init__(self, process: Process, name: str) -> None:
        self._process = process
        self._name = name
        self._is_shut = False

    def submit(self, call: Callable[..., None], /, *args: Any) -> None:
        def run() -> None:
            if not self._is_shut:
                call(*args)

        self._process.thread(run, self._name).start()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._is_shut = True
