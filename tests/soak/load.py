# SPDX-License-Identifier: GPL-3.0-or-later
"""The load: wrk for the bulk of the requests, coroutines for those who wait, and what judges the answers of both."""

import asyncio
import collections
import contextlib
import dataclasses
import heapq
import itertools
import json
import math
import pathlib
import random
import statistics
import subprocess
import threading

from client import target
from history import Asked, Judge, Outcome, expected, now
from merchant import MARKER
from peers import Direct, Peers, uri_of, watch_stalls
from processes import start
from shop import Deed, Key

HERE = pathlib.Path(__file__).resolve().parent
# An answer is judged when it is this old: what happened around it is known then.
SETTLED = 40.0
# Nothing that is older than this matters to a judgement.
FORGOTTEN = 200.0

# Arrivals a second.
CUSTOMERS, PROBES, OTHERS = 46, 20, 10
# Longest wait of a customer in seconds, and the part of it that the shortest one has.
LONGEST_WAIT, SHORTEST = 48.0, 0.2
# Kinds of tests/chaos/peers.py that are neither a crowd nor longer than some seconds.
KINDS = {"shopper": 10, "browser": 10, "keeper": 10, "piecemeal": 6, "halfcloser": 4, "odd": 8, "head": 4,
         "stranger": 6, "half": 3, "leaver": 8, "resetter": 3, "aborter": 4, "babbler": 2, "manager": 2, "garbage": 2,
         "deserter": 8}
# The deeds name orders by order_id alone. Without these each would read tables that grow all the time.
INDEXES = """CREATE INDEX ON merchant.merchant_orders (order_id);
             CREATE INDEX ON merchant.merchant_contract_terms (order_id)"""
# What becomes of a customer: the moments of the sale that come to pass, and who asks.
FATES = {"paid in time": (55, 3, Peers.CUSTOMER), "claimed, never paid": (15, 2, Peers.CUSTOMER),
         "offered, never claimed": (5, 1, Peers.CUSTOMER), "never ordered": (15, 0, Peers.CUSTOMER),
         "leaves the pool": (5, 3, "leaver"), "leaves nginx": (5, 3, "deserter")}


@dataclasses.dataclass(frozen=True)
class Request:
    """One of the bulk: what it asks and what the answer has to be. `fixed` is as that of Asked."""
    key: Key
    uri: str
    status: int
    part: str
    fixed: tuple | None = None


class Catalogue:
    """Sessions whose state never changes: they are in the database before the pools start."""

    def __init__(self, merchant, timeline):
        self.timeline = timeline
        keys = {steps: [Key("shop", f"{MARKER}-fixed/{steps}/{n}", f"https://shop.example/{MARKER}/{n % 50}")
                        for n in range(count)] for steps, count in ((3, 400), (2, 80), (1, 60), (0, 100))}
        self.keys = [key for some in keys.values() for key in some]
        self._deeds = [deed for steps in (1, 2, 3) for key in keys[steps] for deed in merchant.sale(key, [0] * steps)]
        orders = {deed.key: deed.orders for deed in self._deeds}
        self.requests = [self._request(key, orders.get(key)) for key in self.keys] + list(self._malformed())

    def write(self, postgres, db):
        sent = now()
        postgres.psql(INDEXES, db)
        # As one block: thousands of round trips would take seconds.
        deeds = "".join(deed.sql for deed in self._deeds)
        postgres.psql(f"SET search_path = merchant; DO $$BEGIN {deeds} END$$", db)
        postgres.psql("VACUUM ANALYZE merchant.merchant_orders, merchant.merchant_contract_terms", db)
        for deed in self._deeds:
            self.timeline.commits[deed.key].clear()
            self.timeline.commit(deed.key, deed.orders, sent, sent)

    @staticmethod
    def _request(key, orders):
        found = expected(orders or ())
        return Request(key, uri_of(key, 0), found.status, f'"{found.order_id}"' if found.order_id else "2038")

    @staticmethod
    def _malformed():
        for n in range(20):
            key = Key("shop", f"{MARKER}-malformed/{n}", "")
            yield Request(key, target(key.session, "no-uri"), 400, "26", (400, 26))
            yield Request(key, target(key.session), 400, "25", (400, 25))


class Bulk:
    """wrk through nginx: with connections that are kept, and with a new one for each request."""

    KEPT, NEW = 12, 4
    NEW_SHARE = 0.1

    def __init__(self, directory, port, catalogue, seconds, rate):
        self.catalogue = catalogue
        self.report = directory / "bulk-report"
        self.report.touch()
        self._lines = open(self.report, encoding="utf-8", errors="replace")
        requests = directory / "bulk-requests"
        requests.write_text("".join(f"{one.uri}\t{one.status}\t{one.part}\n" for one in catalogue.requests))
        script = [f"http://127.0.0.1:{port}", "--", requests]
        self.processes = [self._start(seconds, self.KEPT, rate * (1 - self.NEW_SHARE), script),
                          self._start(seconds, self.NEW, rate * self.NEW_SHARE, script, "-H", "Connection: close")]

    def _start(self, seconds, threads, rate, script, *headers):
        return start(["wrk", "-d", f"{seconds}s", "-t", threads, "-c", threads, "--timeout", "20s", *headers,
                      "-s", HERE / "bulk.lua", *script, rate / threads, self.report], stdout=subprocess.PIPE, text=True)

    def reported(self):
        """The answers that have to be judged, since the last call."""
        for line in self._lines:
            sent, ended, number, status, body = line.rstrip("\n").split(" ", 4)
            request = self.catalogue.requests[int(number) - 1]
            asked = Asked("bulk", request.key, 0.0, *3 * [float(sent)], nginx=True, fixed=request.fixed)
            Direct.end(asked, Outcome.ANSWERED, int(status), body)
            asked.ended = float(ended)
            yield asked

    def totals(self):
        """Wait for its end; what both have counted."""
        totals = collections.Counter()
        for process in self.processes:
            output, _ = process.communicate()
            if process.returncode != 0:
                raise RuntimeError(f"wrk ended with {process.returncode}: {output}")
            totals += collections.Counter(json.loads(output.strip().splitlines()[-1]))
        return totals

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._lines.close()
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdout.close()


class Deeds:
    """The deeds to come, in the order of time: an iterator for a Writer that has no end before `close()`."""

    def __init__(self):
        self._heap = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False

    def add(self, deeds):
        with self._changed:
            for deed in deeds:
                heapq.heappush(self._heap, (deed.at, next(self._numbers), deed))
            self._changed.notify()

    def close(self):
        with self._changed:
            self._closed = True
            self._changed.notify()

    def __iter__(self):
        return self

    def __next__(self) -> Deed:
        with self._changed:
            while not self._closed:
                rest = self._heap[0][0] - now() if self._heap else None
                if rest is not None and rest <= 0:
                    return heapq.heappop(self._heap)[2]
                self._changed.wait(rest)
        raise StopIteration


class Shoppers:
    """Everybody but the bulk, whose answers are judged here too. Violations go into the timeline."""

    def __init__(self, pools, port, timeline, rules, catalogue, merchant, seed):
        self.pools = pools
        self.port = port
        self.timeline = timeline
        self.catalogue = catalogue
        self.merchant = merchant
        self.chance = random.Random(seed)
        self.deeds = Deeds()
        self.judge = Judge(timeline, rules)
        self.fixed = set(catalogue.keys)
        self.outcomes = collections.Counter()   # (bulk or peers, status or what else) of those that were judged
        self.quick, self.payments = [], []   # seconds, since the last sample
        self._done = collections.deque()
        self._running = set()
        self._customers = itertools.count()

    async def run(self, seconds, bulk):
        end = now() + seconds
        helpers = [asyncio.create_task(each) for each in (watch_stalls(self.timeline), self._judge_always(bulk))]
        try:
            await asyncio.gather(self._arrive(CUSTOMERS, end, self._customer, seconds),
                                 self._arrive(PROBES, end, self._probe), self._arrive(OTHERS, end, self._other))
            await asyncio.gather(*self._running)
        finally:
            for helper in helpers:
                helper.cancel()
                # Raises what has ended it before, if something has.
                with contextlib.suppress(asyncio.CancelledError):
                    await helper

    async def _arrive(self, per_second, end, peer, *arguments):
        at = now()
        while (at := at + self.chance.expovariate(per_second)) < end:
            await asyncio.sleep(max(0, at - now()))
            task = asyncio.create_task(self._ask(*peer(max(0.0, end - now()), *arguments)))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task):
        self._running.discard(task)
        if not task.cancelled() and task.exception():
            self.timeline.violation(f"a peer has failed: {task.exception()!r}")

    async def _ask(self, kind, key, wait):
        peers = Peers(self.chance.choice(self.pools).connect_to, self.port, LONGEST_WAIT)
        await peers.run(kind, key, wait, self.chance.random())
        self._done.extend(peers.asked)
        for asked in peers.asked:
            if asked.outcome is Outcome.ANSWERED:
                self._measure(asked)

    def _measure(self, asked):
        if asked.wait == 0:
            self.quick.append(asked.ended - asked.sent)
        elif asked.status == 200:
            paid = next((commit for commit in self.timeline.commits[asked.key] if commit.found.status == 200), None)
            if paid and paid.sent > asked.arrived:
                self.payments.append(max(0.0, asked.ended - paid.done))

    def _customer(self, left, seconds):
        longest = min(LONGEST_WAIT, seconds / 4)
        wait = round(min(self.chance.uniform(SHORTEST * longest, longest), left), 3)
        fate = self.chance.choices(list(FATES), [share for share, *_ in FATES.values()])[0]
        _, steps, kind = FATES[fate]
        key = Key("shop", f"{MARKER}-customer/{next(self._customers)}",
                  f"https://shop.example/{MARKER}/{self.chance.randrange(50)}")
        moments = sorted(now() + self.chance.uniform(0, 0.9 * wait) for _ in range(steps))
        self.deeds.add(self.merchant.sale(key, moments))
        self.merchant.orders.pop(key, None)
        self.timeline.counts[f"customer: {fate}"] += 1
        return kind, key, wait

    def _probe(self, _left):
        return self.chance.choice(["browser", "shopper"]), self.chance.choice(self.catalogue.keys), 0

    def _other(self, left):
        kind = self.chance.choices(list(KINDS), KINDS.values())[0]
        return kind, self.chance.choice(self.catalogue.keys), min(left, self.chance.choice([0, 0.2, 1, 3]))

    # The judgement

    async def _judge_always(self, bulk):
        while True:
            await asyncio.sleep(0.5)
            self._done.extend(bulk.reported())
            self.judge_done(now() - SETTLED)

    def judge_done(self, until):
        """Judge who was done before this moment, and forget what no longer matters."""
        later = []
        while self._done:
            asked = self._done.popleft()
            if asked.ended > until and asked.outcome is not Outcome.LEFT:
                later.append(asked)
            else:
                self._judge(asked)
        self._done.extend(later)
        for spans in self.timeline.spans.values():
            while spans and spans[0].end < until - FORGOTTEN:
                del spans[0]

    def judge_rest(self, bulk):
        """All the others: nothing happens any more."""
        self._done.extend(bulk.reported())
        self.judge_done(math.inf)

    def _judge(self, asked):
        outcome = asked.status if asked.outcome is Outcome.ANSWERED else asked.outcome.value
        self.outcomes["bulk" if asked.peer == "bulk" else "peers", outcome] += 1
        for text in self.judge.verdicts(asked):
            self.timeline.violation(f"{text}: {asked}", asked.ended)
        if asked.key not in self.fixed:
            self.timeline.commits.pop(asked.key, None)

    def latencies(self):
        """(quick, payments): seconds of those that ended since the last call."""
        taken = self.quick, self.payments
        self.quick, self.payments = [], []
        return taken


def percentile(seconds, n):
    """The nth percentile in milliseconds; None where there is none."""
    if len(seconds) < 2:
        return None
    return round(1000 * statistics.quantiles(seconds, n=100, method="inclusive")[n - 1], 2)
