"""A TCP proxy between two processes, which can be held, cut without a word, or reset."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, Literal, TypeVar

from broker_fl.workers.servers.process import free_port

Direction = Literal["up", "down"]
"""``up``: from the client, which connects, to the server."""
T = TypeVar("T")
READ_BYTES = 4096


class Proxies:
    """The thread that all proxies of a test run on."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self.writers: list[asyncio.StreamWriter] = []
        """Of all connections there were, closed at the end: a warning is an error."""
        self._thread = threading.Thread(target=self.loop.run_forever, name="proxies", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it on the thread, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def to(self, port: int) -> Proxy:
        """A new proxy to this port of loopback."""
        proxy = Proxy(self, port)
        self._servers.append(proxy.server)
        return proxy

    def close(self) -> None:
        """Close all proxies, and end the thread."""
        self.run(self._end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self.writers:
            writer.transport.abort()
        for _ in range(3):  # what was aborted is closed in the loop's next turns
            await asyncio.sleep(0)


class Lane:
    """One direction, of all connections of a proxy."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.left: int | None = None
        self.held = threading.Event()

    async def pass_on(self, data: bytes) -> None:
        """Wait until these bytes may go."""
        if self.left is not None:
            self.left -= len(data)
            if self.left < 0 and self.open.is_set():
                self.open.clear()
                self.held.set()
        await self.open.wait()


class Proxy:
    """What it does to a connection is what networks do: delay, silence (a NAT that forgot it), reset."""

    def __init__(self, proxies: Proxies, target: int) -> None:
        self._proxies = proxies
        self._target = target
        self._pairs: set[_Pair] = set()
        self._cut: Literal["silent", "reset"] | None = None
        self.lanes: dict[Direction, Lane] = {"up": Lane(), "down": Lane()}
        self.port = free_port()
        self.server = proxies.run(self._listen())

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def hold(self, direction: Direction, *, after_bytes: int = 0) -> threading.Event:
        """Let so many bytes more through in this direction, then none until ``release``; nothing is lost.

        The event is set when something waits.
        """
        lane = self.lanes[direction]
        lane.held.clear()

        async def hold() -> None:
            lane.left = after_bytes

        self._proxies.run(hold())
        return lane.held

    def release(self) -> None:
        """Let everything go on."""

        async def release() -> None:
            for lane in self.lanes.values():
                lane.left = None
                lane.open.set()

        self._proxies.run(release())

    def cut(self, how: Literal["silent", "reset"]) -> None:
        """``silent``: what is connected hears nothing more, for ever, and is not told; ``reset``: it is told.
        The same happens to who connects until ``heal``.
        """

        async def cut() -> None:
            self._cut = how
            for pair in list(self._pairs):
                pair.cut(how)

        self._proxies.run(cut())

    def heal(self) -> None:
        """New connections work again."""

        async def heal() -> None:
            self._cut = None

        self._proxies.run(heal())

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxies.writers.append(writer)
        pair = _Pair(self.lanes, reader, writer)
        self._pairs.add(pair)
        try:
            if self._cut is None:
                await pair.connect(self._target)
                self._proxies.writers += pair.writers()
            else:
                pair.cut(self._cut)
            await pair.run()
        finally:
            self._pairs.discard(pair)


class _Pair:
    """Two connections, and what goes from one to the other."""

    def __init__(
        self, lanes: dict[Direction, Lane], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._lanes = lanes
        self._client = (reader, writer)
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._is_silent = False

    def writers(self) -> list[asyncio.StreamWriter]:
        """To the server, if it is there."""
        return [self._server[1]] if self._server is not None else []

    async def connect(self, port: int) -> None:
        try:
            self._server = await asyncio.open_connection("127.0.0.1", port, limit=READ_BYTES)
        except OSError:
            self.cut("reset")

    async def run(self) -> None:
        if self._server is None:
            await self._swallow(self._client[0])
            self._client[1].close()
            return
        up = self._copy(self._client[0], self._server[1], self._lanes["up"])
        down = self._copy(self._server[0], self._client[1], self._lanes["down"])
        await asyncio.gather(up, down)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lane: Lane) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                await lane.pass_on(data)
                if not self._is_silent:
                    writer.write(data)
                    await writer.drain()
        if self._is_silent:  # the other side is not told that this one has gone
            return
        with contextlib.suppress(OSError):
            writer.close()

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(READ_BYTES):
                pass

    def cut(self, how: Literal["silent", "reset"]) -> None:
        if how == "silent":
            self._is_silent = True
            return
        for side in (self._client, self._server):
            if side is not None:
                _reset(side[1])


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        # Closing it now sends RST instead of FIN.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
