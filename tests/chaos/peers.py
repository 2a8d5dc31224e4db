# SPDX-License-Identifier: GPL-3.0-or-later
"""Who asks the pool: well-behaved and rude peers, directly and through nginx, as coroutines.

A peer is planned as (at, kind, parameters). Each request whose answer counts is noted as an Asked.
"""

import asyncio
import contextlib
import json
import os
import random
import socket

import fastcgi
from client import target
from history import Asked, Kind, Outcome, Span, now

# How long a peer waits beyond what it was granted: longer than anything that is allowed.
PATIENCE = 15.0
# A driver that was late by this did not run, or its machine did not.
STALL = 0.25


async def watch_stalls(timeline):
    """Note when this event loop did not run, until the task is cancelled."""
    while True:
        before = now()
        await asyncio.sleep(0.02)
        if now() - before > STALL:
            timeline.spans[Kind.STALL].append(Span(before, now()))


class Peers:
    """`ordinary` and `rude` kinds are methods; all requests are in `asked`."""

    ORDINARY = {"shopper": 80, "browser": 50, "keeper": 12, "piecemeal": 12, "halfcloser": 8, "odd": 10, "head": 6,
                "stranger": 8}
    # Not drawn like the others: each comes with a sale of its own.
    CUSTOMER = "customer"
    RUDE = {"half": 6, "leaver": 10, "resetter": 4, "aborter": 6, "babbler": 6, "sequel": 12, "deaf": 2, "manager": 4,
            "garbage": 4, "deserter": 6, "flood": 3, "crowd": 0.5, "loiterers": 0.5}

    def __init__(self, address, port, max_wait):
        self.address = address
        self.port = port
        self.max_wait = max_wait
        self.asked = []

    async def run(self, kind, key, wait, seed):
        chance = random.Random(seed)
        with contextlib.suppress(OSError, EOFError):
            await getattr(self, kind)(kind, key, wait, chance)

    def _ask(self, peer, key, wait, **more):
        asked = Asked(peer, key, min(wait, self.max_wait), **more)
        self.asked.append(asked)
        return asked

    # Well-behaved, directly.

    async def shopper(self, peer, key, wait, chance):
        asked = self._ask(peer, key, wait)
        async with Direct(self.address, asked) as direct:
            await direct.send(asked, request(key, wait))
            await direct.reply(asked)

    async def keeper(self, peer, key, wait, chance):
        """Several requests on one connection."""
        first = self._ask(peer, key, wait)
        async with Direct(self.address, first) as direct:
            await direct.send(first, request(key, wait, keep=True))
            await direct.reply(first)
            for _ in range(chance.randint(1, 3)):
                await asyncio.sleep(chance.choice([0, 0, 0.1, 1]))
                id = chance.randint(1, 500)
                again = self._ask(peer, key, wait / 2, reused=True)
                await direct.send(again, request(key, wait / 2, keep=True, id=id))
                await direct.reply(again)
                if again.outcome is not Outcome.ANSWERED:
                    return

    async def piecemeal(self, peer, key, wait, chance):
        """The request arrives in pieces, cut at any byte."""
        asked = self._ask(peer, key, wait)
        whole = request(key, wait)
        cuts = sorted(chance.sample(range(1, len(whole)), chance.randint(1, 5)))
        async with Direct(self.address, asked) as direct:
            for begin, end in zip([0, *cuts], cuts):
                await direct.send(None, whole[begin:end])
                await asyncio.sleep(chance.uniform(0, 0.15))
            await direct.send(asked, whole[cuts[-1]:])
            await direct.reply(asked)

    async def halfcloser(self, peer, key, wait, chance):
        """It has nothing more to send, and says so."""
        asked = self._ask(peer, key, wait, may_be_early=True)
        async with Direct(self.address, asked) as direct:
            await direct.send(asked, request(key, wait))
            reading = asyncio.create_task(direct.reply(asked))
            await asyncio.sleep(chance.choice([0, 0.1]))
            direct.writer.write_eof()
            await reading

    async def head(self, peer, key, wait, chance):
        """It never waits, and its answer has no body: which order it was is not judged."""
        asked = self._ask(peer, key, 0)
        async with Direct(self.address, asked) as direct:
            await direct.send(asked, request(key, wait, method="HEAD"))
            await direct.reply(asked)
        if asked.status != 500:
            asked.outcome = Outcome.LEFT

    async def odd(self, peer, key, wait, chance):
        """Answers that need nothing, or only the instances, from the database."""
        uri, method, status, code = chance.choice([
            (target(key.session, None), "GET", 400, 25), (target(key.session, "no-uri"), "GET", 400, 26),
            (target(key.session, key.url, timeout_ms="-1"), "GET", 400, 26), ("/orders/1", "GET", 404, 21),
            (target(key.session, key.url), "POST", 405, 20), (target(key.session, key.url), "OPTIONS", 204, None),
            (target(key.session, key.url, "nobody", int(wait * 1000)), "GET", 404, 2000)])
        asked = self._ask(peer, key, 0, fixed=(status, code))
        async with Direct(self.address, asked) as direct:
            await direct.send(asked, fastcgi.request(fastcgi.variables(uri, method)))
            await direct.reply(asked)

    async def stranger(self, peer, key, wait, chance):
        """A session that nobody knows."""
        key = key._replace(session=f"{key.session}-{chance.randrange(10 ** 9)}")
        await self.shopper(peer, key, wait, chance)

    async def customer(self, peer, key, wait, chance):
        """The only one who knows its session, directly or through nginx."""
        await chance.choice([self.shopper, self.browser])(peer, key, wait, chance)

    # Well-behaved, through nginx.

    async def browser(self, peer, key, wait, chance):
        asked = self._ask(peer, key, wait, nginx=True)
        async with Direct(("127.0.0.1", self.port), asked) as direct:
            await direct.send(asked, http(key, wait))
            await direct.http_reply(asked)

    # Rude.

    async def flood(self, peer, key, wait, chance, most=60):
        """Many at the same time, for one session or several, whose deadlines coincide."""
        keys = [key if chance.random() < 0.5 else key._replace(session=f"{key.session}-{chance.randrange(5)}")
                for _ in range(chance.randint(most // 3, most))]
        ask = chance.choice([self.shopper, self.browser])
        await asyncio.gather(*(ask(peer, each, wait, chance) for each in keys), return_exceptions=True)

    async def crowd(self, peer, key, wait, chance):
        """More than there may be descriptors for."""
        await self.flood(peer, key, 2 + wait / 2, chance, most=400)

    async def loiterers(self, peer, key, wait, chance):
        """Many who keep a connection and ask for nothing."""
        await asyncio.gather(*(self.manager(peer, key, wait, chance) for _ in range(200)), return_exceptions=True)

    async def half(self, peer, key, wait, chance):
        """Part of a request, and then nothing."""
        whole = request(key, wait)
        async with Direct(self.address) as direct:
            await direct.send(None, whole[:chance.randrange(len(whole))])
            await direct.until_closed(chance.uniform(0.1, 3))

    async def leaver(self, peer, key, wait, chance):
        """It closes while it waits; its reader gets nothing."""
        asked = self._ask(peer, key, wait)
        async with Direct(self.address, asked) as direct:
            await direct.send(asked, request(key, wait))
            await direct.until_closed(chance.uniform(0, wait + 0.2))
        asked.ended = now()

    async def deserter(self, peer, key, wait, chance):
        """A browser that is closed while it waits."""
        asked = self._ask(peer, key, wait, nginx=True)
        async with Direct(("127.0.0.1", self.port), asked) as direct:
            await direct.send(asked, http(key, wait))
            await direct.until_closed(chance.uniform(0, wait + 0.2))
            if chance.random() < 0.5:
                direct.reset()
        asked.ended = now()

    async def resetter(self, peer, key, wait, chance):
        """Closed with the answer unread: the pool meets ECONNRESET or EPIPE."""
        asked = self._ask(peer, key, wait)
        async with Direct(self.address, asked) as direct:
            direct.writer.transport.pause_reading()
            await direct.send(asked, request(key, wait, keep=chance.random() < 0.5))
            await asyncio.sleep(chance.uniform(0, wait + 0.2))
        asked.ended = now()

    async def _interrupt(self, peer, key, wait, chance, make_interruption):
        """A request, and something else while it waits."""
        asked = self._ask(peer, key, wait)
        async with Direct(self.address, asked) as direct:
            await direct.send(asked, request(key, wait, keep=True))
            await asyncio.sleep(chance.uniform(0, wait))
            await direct.send(None, make_interruption())
            await direct.until_closed(1)
        asked.ended = now()

    async def aborter(self, peer, key, wait, chance):
        await self._interrupt(peer, key, wait, chance, fastcgi.abort)

    async def babbler(self, peer, key, wait, chance):
        """Garbage after a request that waits."""
        await self._interrupt(peer, key, wait, chance, lambda: chance.randbytes(chance.randint(1, 200)))

    async def sequel(self, peer, key, wait, chance):
        """While its request waits, the first bytes of another record come; the rest after the answer."""
        id = chance.choice([1, 2, 2, 300])
        begins = request(key, 0, keep=True, id=id)
        other = chance.choice([begins, begins, fastcgi.record(fastcgi.GET_VALUES, b"", id=0),
                               fastcgi.record(fastcgi.PARAMS, chance.randbytes(40), id=id, padding=3)])
        cut = chance.randint(1, min(24, len(other) - 1))
        asked = self._ask(peer, key, wait)
        try:
            async with Direct(self.address, asked) as direct:
                await direct.send(asked, request(key, wait, keep=True))
                reading = asyncio.create_task(direct.reply(asked))
                await asyncio.sleep(chance.uniform(0, wait))
                await direct.send(None, other[:cut])
                await reading
                await asyncio.sleep(chance.choice([0, 0, 0.2]))
                await direct.send(None, other[cut:])
                await direct.until_closed(0.5)
        finally:
            # A second BEGIN is refused, and the first request goes on; of the others some end the connection.
            if asked.outcome is Outcome.CLOSED and not (other is begins and id != 1 and cut <= 16):
                asked.outcome = Outcome.LEFT

    async def deaf(self, peer, key, wait, chance):
        """It asks again and again and reads nothing."""
        async with Direct(self.address) as direct:
            direct.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            direct.writer.transport.pause_reading()
            with contextlib.suppress(asyncio.TimeoutError):
                async with asyncio.timeout(2):
                    for _ in range(500):
                        await direct.send(None, request(key, 0, keep=True))
                        await asyncio.sleep(0.002)

    async def manager(self, peer, key, wait, chance):
        """It asks for the limits of the program and then keeps the connection."""
        async with Direct(self.address) as direct:
            await direct.send(None, fastcgi.record(fastcgi.GET_VALUES, fastcgi.pairs({"FCGI_MAX_CONNS": ""}), id=0))
            await direct.until_closed(chance.uniform(0.5, 5))

    async def garbage(self, peer, key, wait, chance):
        async with Direct(self.address) as direct:
            await direct.send(None, chance.randbytes(chance.randint(1, 3000)))
            await direct.until_closed(1)


def request(key, wait, keep=False, id=1, method="GET"):
    return fastcgi.request(fastcgi.variables(uri_of(key, wait), method), id=id, keep=keep)


def http(key, wait):
    return f"GET {uri_of(key, wait)} HTTP/1.0\r\nHost: shop.example\r\n\r\n".encode()


def uri_of(key, wait):
    return target(key.session, key.url, key.instance or None, int(wait * 1000) if wait else None)


class Direct:
    """A connection to the pool's socket, or to nginx. What goes wrong with it is noted in `asked`."""

    def __init__(self, address, asked=None):
        self.address = address
        self.asked = asked

    async def __aenter__(self):
        self.socket = socket.socket(socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET)
        self.socket.setblocking(False)
        self.opened = now()
        try:
            await asyncio.get_running_loop().sock_connect(self.socket, self.address)
        except OSError:
            self.socket.close()
            if self.asked:
                self.asked.opened = self.asked.sent = self.asked.arrived = self.opened
                self.end(self.asked, Outcome.REFUSED)
            raise
        if self.asked:
            self.asked.socket = os.fstat(self.socket.fileno()).st_ino
        self.reader, self.writer = await asyncio.open_connection(sock=self.socket)
        return self

    async def __aexit__(self, *_):
        self.writer.transport.abort()

    def reset(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    async def send(self, asked, data):
        """`data` has the last byte of the request `asked`."""
        if asked:
            asked.opened, asked.sent = self.opened, now()
        try:
            self.writer.write(data)
            await self.writer.drain()
        except OSError:
            if asked:
                asked.arrived = asked.sent
                self.end(asked, Outcome.CLOSED)
            raise
        if asked:
            asked.arrived = now()

    @staticmethod
    def end(asked, outcome, status=0, body=b""):
        asked.ended = now()
        asked.outcome = outcome
        asked.status = status
        with contextlib.suppress(ValueError):
            content = json.loads(body)
            asked.code, asked.order_id = content.get("code"), content.get("order_id")

    async def _within_patience(self, asked, read):
        try:
            async with asyncio.timeout(asked.wait + PATIENCE):
                await read(asked)
        except TimeoutError:
            self.end(asked, Outcome.SILENT)
        except (OSError, EOFError):
            self.end(asked, Outcome.CLOSED)

    async def reply(self, asked):
        await self._within_patience(asked, self._reply)

    async def http_reply(self, asked):
        await self._within_patience(asked, self._http_reply)

    async def _reply(self, asked):
        output, errors = b"", b""
        while True:
            _, kind, _, length, padding = fastcgi.HEADER.unpack(await self.reader.readexactly(fastcgi.HEADER.size))
            content = (await self.reader.readexactly(length + padding))[:length]
            if kind == fastcgi.STDOUT:
                output += content
            elif kind == fastcgi.END_REQUEST and output:
                reply = fastcgi.reply_of(output, errors, 0, content[4])
                self.end(asked, Outcome.ANSWERED, reply.status, reply.body)
                return

    async def _http_reply(self, asked):
        answer = await self.reader.read(-1)
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head:
            raise EOFError
        self.end(asked, Outcome.ANSWERED, int(head.split()[1]), body)

    async def until_closed(self, seconds):
        """Read and forget, until the other side closes or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while await self.reader.read(65536):
                    pass
