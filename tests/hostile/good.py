# SPDX-License-Identifier: GPL-3.0-or-later
"""The pool under attack, a good client that is answered all along, and what must be as before when the attack is over."""

import contextlib
import itertools
import math
import threading
import time

import fastcgi
from client import Fcgi, assert_error, assert_order, target
from merchant import MARKER, Merchant
from processes import descriptors, own_bytes, wait_until
from servers import LOG_LINE, Pool, Postgres, make_shop

INSTANCE, URL = "shop", f"https://shop.example/{MARKER}/hostile"
PAID, UNPAID, UNKNOWN = (f"{MARKER}-hostile-{name}" for name in ("paid", "unpaid", "unknown"))
# A request has five seconds to arrive, ten if it never ends.
RETURN_SECONDS = 15


class GoodClient(threading.Thread):
    """Asks one after the other, at most PER_SECOND, and judges each answer. `seconds` are those of the answers."""

    PER_SECOND = 400

    def __init__(self, address):
        super().__init__(daemon=True)
        self.fcgi = Fcgi(address)
        self.seconds = []
        self.error = None
        self._ended = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, kind, *_):
        self._ended.set()
        self.join()
        if kind is None and self.error:
            raise self.error

    def run(self):
        try:
            for n in itertools.count():
                self._ask(n)
                if self._ended.wait(1 / self.PER_SECOND):
                    return
        except Exception as error:  # pylint: disable=broad-except
            self.error = error

    def _ask(self, n):
        session = [PAID, UNPAID, UNKNOWN][n % 3]
        answer = self.fcgi.ask(session, URL, INSTANCE)
        self.seconds.append(answer.seconds)
        if session == UNKNOWN:
            assert_error(answer, 404, 2038)
        else:
            assert_order(answer, 200 if session == PAID else 202, session.replace("hostile", "order"))

    def p99(self):
        return sorted(self.seconds)[math.ceil(len(self.seconds) * 0.99) - 1]


class Attacked:
    """A pool, and what its workers have: they must live through it, and have no more afterwards."""

    def __init__(self, pool):
        self.pool = pool
        self.fcgi = Fcgi(pool.connect_to)
        for _ in range(200):  # what is allocated once is there
            assert_error(self.fcgi.ask(UNKNOWN, URL, INSTANCE), 404, 2038)
        self.workers = pool.workers()
        wait_until(lambda: sum("database: connected" in line for line in pool.log_lines()) >= len(self.workers),
                   what="workers that have connected to the database")
        self.descriptors = self._steady_descriptors()
        self.bytes = self._bytes()

    def _steady_descriptors(self):
        """Once the connection of the last request is closed: the answer arrives a moment before."""
        readings = []

        def steady():
            readings.append(self.open_descriptors())
            return len(readings) > 1 and readings[-1] == readings[-2]
        wait_until(steady, what="descriptors that stay")
        return readings[-1]

    def open_descriptors(self):
        return [descriptors(worker) for worker in self.workers]

    def _bytes(self):
        return sum(own_bytes(worker) for worker in self.workers)

    def check(self, bytes_allowed):
        """Returns by how many bytes the memory has grown."""
        assert self.pool.workers() == self.workers, "a worker has died"
        wait_until(lambda: all(now <= before for now, before in zip(self.open_descriptors(), self.descriptors)), RETURN_SECONDS,
                   "no more descriptors than before")
        assert_error(self.fcgi.ask(UNKNOWN, URL, INSTANCE), 404, 2038)
        grown = self._bytes() - self.bytes
        assert grown <= bytes_allowed, f"memory has grown by {grown} bytes"
        return grown


@contextlib.contextmanager
def attacked(program, workers=2, **options):
    """Start everything. When the block ends the pool must stop as it should, and its log must hold nothing to worry about."""
    with Postgres() as postgres:
        database = make_shop(postgres, "shop")
        fill(postgres)
        with Pool(program, "--workers", str(workers), "--poll-interval", "100", database=database, **options) as pool:
            wait_until(lambda: len([line for line in pool.log_lines() if "connected" in line]) == workers, 20, "workers")
            yield Attacked(pool)
            assert pool.stop(within=10) == 0
            check_log(pool)


def fill(postgres):
    """The orders that the good client asks about."""
    merchant = Merchant(postgres, "shop")
    for session in (PAID, UNPAID):
        merchant.contract(session, URL, INSTANCE, session.replace("hostile", "order"), paid=session == PAID)


def check_log(pool):
    for line in pool.log_lines():
        form = LOG_LINE.fullmatch(line)
        assert form and form[1] not in ("warning", "error") and MARKER not in line, line


def request(session=UNKNOWN, timeout_ms=None, **more):
    return fastcgi.request(fastcgi.variables(target(session, URL, INSTANCE, timeout_ms)), **more)


def elapsed(begun):
    return time.monotonic() - begun
