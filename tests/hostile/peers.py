# SPDX-License-Identifier: GPL-3.0-or-later
"""Peers that hold connections and give nothing for it, and what a good client notices of them.

Each kind is a number of connections in a process of its own. One that the pool closes is opened again a second later.
"""

import contextlib
import itertools
import multiprocessing
import select
import socket
import statistics
import time

import fastcgi
from fastcgi import GET_VALUES
from good import GoodClient, request

PAIRS = 3
BYTES_ALLOWED = 4 * 2**20
TICK = 0.02
# How often the pool's descriptors are counted during a measurement.
SAMPLES = 8
METRICS = {"MERCHANT_SESSIONS_METRICS": "1"}


class Peer:
    """One connection. `begin` is called when it is open, `tick` once a TICK."""

    def __init__(self, address, number):
        self.number = number
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.setblocking(False)
        self.socket.connect(address)
        self.begin()

    def begin(self):
        pass

    def tick(self, now):
        pass

    def send(self, data):
        with contextlib.suppress(OSError):
            self.socket.send(data)


class Silent(Peer):
    """It sends nothing, a part of a header, or all but the last byte of a request."""
    COUNT = 3000

    def begin(self):
        whole = request()
        self.send(whole[:[0, 3, len(whole) - 1][self.number % 3]])


class Dripping(Peer):
    """One byte a second."""
    COUNT = 3000

    def begin(self):
        self.bytes = itertools.cycle(fastcgi.begin() + fastcgi.record(fastcgi.STDIN, b"x" * 60000, id=2))
        self.due = time.monotonic() + self.number % 50 * TICK

    def tick(self, now):
        if now >= self.due:
            self.due += 1
            self.send(bytes([next(self.bytes)]))


class Deaf(Peer):
    """It asks again and again, and reads no answer. Every other one asks for what is answered in many small records."""
    COUNT = 100

    def begin(self):
        small = fastcgi.record(GET_VALUES, fastcgi.pairs({"FCGI_MPXS_CONNS": ""}), id=0) * 50
        self.question = small if self.number % 2 else fastcgi.request(METRICS, keep=True)

    def tick(self, now):
        self.send(self.question)


class HalfClosing(Peer):
    """It closes its side with nothing sent, with half a request, or with a request that waits."""
    COUNT = 600

    def begin(self):
        wait = request(timeout_ms=10000)
        self.send([b"", wait[:len(wait) // 2], wait][self.number % 3])
        self.socket.shutdown(socket.SHUT_WR)


KINDS = [Silent, Dripping, Deaf, HalfClosing]


class Crowd:
    """So many peers of a kind."""

    def __init__(self, kind, count, address):
        self.kind, self.address = kind, address
        self.poll = select.epoll()
        self.peers = {}  # by descriptor
        self.absent = [(0, number) for number in range(count)]  # when to connect, number

    def turn(self):
        now = time.monotonic()
        for _ in range(100):  # not so many at once that nobody else gets in
            if not self.absent or self.absent[0][0] > now:
                break
            self.connect(*self.absent.pop(0))
        for peer in self.peers.values():
            peer.tick(now)
        self.close_closed(now)

    def connect(self, _, number):
        try:
            peer = self.kind(self.address, number)
        except BlockingIOError:  # too many wait to be accepted
            self.absent.append((time.monotonic() + 1, number))
            return
        self.peers[peer.socket.fileno()] = peer
        self.poll.register(peer.socket, select.EPOLLHUP)

    def close_closed(self, now):
        for descriptor, _ in self.poll.poll(0):
            peer = self.peers.pop(descriptor)
            self.poll.unregister(descriptor)
            peer.socket.close()
            self.absent.append((now + 1, peer.number))


def attack(kind, count, address, stop):
    crowd = Crowd(kind, count, address)
    while not stop.wait(TICK):
        crowd.turn()


@contextlib.contextmanager
def attacking(kind, count, address):
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    process = context.Process(target=attack, args=(kind, count, address, stop), daemon=True)
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join()


def measure(victim, seconds):
    """The p99 of a good client, and how many connections of others there were at most."""
    most = 0
    with GoodClient(victim.pool.connect_to) as client:
        for _ in range(SAMPLES):
            time.sleep(seconds / SAMPLES)
            most = max(most, sum(victim.open_descriptors()) - sum(victim.descriptors))
    return client.p99(), most


def run(victim, kind, seconds, pairs=PAIRS, part=1, bytes_allowed=BYTES_ALLOWED):
    """Measure a good client without and with the attack, in turn; `part` of the peers are there.

    Returns the median of the ratios of p99, and a line of text.
    """
    quiet, loud, most, count = [], [], 0, round(kind.COUNT * part)
    for _ in range(pairs):
        quiet.append(measure(victim, seconds)[0])
        with attacking(kind, count, victim.pool.connect_to):
            time.sleep(min(2, seconds))  # all are there
            p99, there = measure(victim, seconds)
        loud.append(p99)
        most = max(most, there)
    ratio = statistics.median(high / low for low, high in zip(quiet, loud))
    grown = victim.check(bytes_allowed)
    milliseconds = [f"{statistics.median(values) * 1000:.2f} ms" for values in (quiet, loud)]
    return ratio, (f"{kind.__name__}, {count:,} peers: p99 of a good client {milliseconds[1]}, {milliseconds[0]} without "
                   f"them; ratio {ratio:.2f} (median of {pairs}); {most:,} connections open at most; afterwards "
                   f"descriptors as before, memory {grown / 2**20:+.1f} MiB")
