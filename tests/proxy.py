# SPDX-License-Identifier: GPL-3.0-or-later
"""A TCP proxy to a port of 127.0.0.1 that spoils what passes: `proxy.road` is one of the roads below, and may be changed at any
time. A road is a coroutine that gets what was read and the Lane that it is to be written to."""

import asyncio
import contextlib
import random
import threading


class Lane:
    """One direction of one connection."""

    def __init__(self, proxy, writer, to_client):
        self.proxy = proxy
        self.writer = writer
        self.to_client = to_client
        self.dead = False  # it has swallowed something

    async def send(self, data):
        self.writer.write(data)
        await self.writer.drain()


async def clear(data, lane):
    if not lane.dead:
        await lane.send(data)


def delayed(seconds):
    """Each piece is so long under way. What is written meanwhile joins the next piece."""
    async def road(data, lane):
        await asyncio.sleep(seconds)
        await clear(data, lane)
    return road


async def swallowed(_, lane):
    """A firewall that has forgotten the connection: nothing arrives, ever again, and nothing is closed."""
    lane.dead = True


async def truncated(data, lane):
    """The connection is cut within the piece."""
    await lane.send(data[:len(data) // 2])
    raise ConnectionAbortedError


def garbled(to_client, chance=0.3, random=random.Random(1)):
    """In some pieces of one direction, or of both (None), one bit is turned over, or some bytes are others."""
    async def road(data, lane):
        if to_client in (None, lane.to_client) and random.random() < chance:
            data = bytearray(data)
            at = random.randrange(len(data))
            if random.random() < 0.5:
                data[at] ^= 1 << random.randrange(8)
            else:
                data[at:at + 8] = random.randbytes(len(data[at:at + 8]))
        await clear(data, lane)
    return road


def replaced(old, new):
    """In what goes to the client the bytes `old` are others."""
    async def road(data, lane):
        await clear(data.replace(old, new) if lane.to_client else data, lane)
    return road


def dripping(pause):
    """One byte at a time; when the road has changed, the rest at once."""
    async def road(data, lane):
        for at in range(len(data)):
            if lane.proxy.road is not road:
                await lane.send(data[at:])
                return
            await lane.send(data[at:at + 1])
            await asyncio.sleep(pause)
    return road


class Proxy:
    """Runs in a thread of its own, within a `with`."""

    def __init__(self, target_port):
        self.target_port = target_port
        self.road = clear
        self.port = None
        self._listening = threading.Event()

    def __enter__(self):
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        self._listening.wait()
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    async def _serve(self):
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._end.wait()
        server.close()

    async def _connected(self, reader, writer):
        with contextlib.suppress(OSError):
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
            lanes = (self._carry(reader, Lane(self, target_writer, False)), self._carry(target_reader, Lane(self, writer, True)))
            carrying = [asyncio.create_task(lane) for lane in lanes]
            try:
                await asyncio.wait(carrying, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in carrying:
                    task.cancel()
                target_writer.transport.abort()
        writer.transport.abort()

    async def _carry(self, reader, lane):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self.road(data, lane)
