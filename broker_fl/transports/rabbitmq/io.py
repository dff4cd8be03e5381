"""The thread that owns the connections; all others reach it from here."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import queue
import random
import threading
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, TypeVar

from broker_fl.errors import BrokerFLError, BrokerUnavailable, TransportClosed

log = logging.getLogger(__name__)

T = TypeVar("T")


class IoThread:
    """One event loop on one thread. Nothing on it may block."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(self._end_tasks())
        self.loop.close()

    async def _end_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # pika closes its sockets in callbacks

    @property
    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def check_not_current(self) -> None:
        """Refuse a call by a sink, which would wait for itself.

        Raises:
            RuntimeError: this is the I/O thread.
        """
        if self.is_current:
            raise RuntimeError(
                "a sink may only ack or reject: to call the transport, it needs another thread"
            )

    def soon(self, callback: Callable[[], None]) -> None:
        """Run it on the thread before long; not at all once the thread has ended."""
        try:
            if self.is_current:
                self.loop.call_soon(callback)
            else:
                self.loop.call_soon_threadsafe(callback)
        except RuntimeError:
            log.debug("the loop is closed")

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """Run it on the thread and wait for it.

        Raises:
            BrokerUnavailable: it took longer than ``timeout_s``.
            TransportClosed: the thread has ended.
        """
        try:
            self.check_not_current()
            future = asyncio.run_coroutine_threadsafe(work, self.loop)
        except RuntimeError as error:
            work.close()
            if self.loop.is_closed():
                raise TransportClosed("the transport is closed") from error
            raise
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError as error:
            future.cancel()
            raise BrokerUnavailable(f"the broker did not answer within {timeout_s:.0f} s") from error
        except concurrent.futures.CancelledError as error:
            raise TransportClosed("the transport was closed meanwhile") from error

    def stop(self, timeout_s: float) -> None:
        """End the thread."""
        self.soon(self.loop.stop)
        if not self.is_current:
            self._thread.join(timeout_s)


class CallbackThread:
    """Runs the owner's callbacks, so that they may block and call the transport. It starts with the first."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def call(self, callback: Callable[..., None], *args: str) -> None:
        """To be used by one thread only."""
        self._calls.put(partial(callback, *args))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Let it end after what is queued."""
        self._calls.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while (callback := self._calls.get()) is not None:
            try:
                callback()
            except BrokerFLError as error:
                log.warning("%s", error)
            except Exception:
                log.exception("a callback failed")


def backoff(first_s: float, longest_s: float) -> Iterator[float]:
    """Delays in seconds that double up to the longest, with jitter, lest a thousand clients come at once."""
    delay_s = first_s
    while True:
        yield delay_s * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
        delay_s = min(2 * delay_s, longest_s)
