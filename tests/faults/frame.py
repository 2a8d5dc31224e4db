# SPDX-License-Identifier: GPL-3.0-or-later
"""A row of the table: servers, a load, a fault in its midst, and what the judge of tests/chaos says of each answer.

A fault is a function with @fault. It gets the Stage, begins, lasts and has been healed when it returns. Its name is that
of the row, its docstring says what happens.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import pathlib
import random
import re
import resource
import secrets
import signal
import sys
import threading
import typing

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / part) for part in ("faults", "chaos", "", "e2e")]

from faults import Database, Processes, unexpected_lines  # noqa: E402
from history import PROMPT, Judge, Kind, Outcome, Rules, Timeline, now  # noqa: E402
from layouts import LAYOUTS, make_merchant  # noqa: E402
from merchant import MARKER  # noqa: E402
from peers import STALL, Peers, watch_stalls  # noqa: E402
from servers import LOG_LINE, Nginx, Pool, Postgres, location, upstream  # noqa: E402
from shop import Key, Merchant, Writer  # noqa: E402

DB = "shop"
# Instances beside the shop: one with sales too, and one whose orders never change.
OTHER, THIRD = "bakery", "florist"
# What the layouts of tests/e2e/layouts.py are called here: all instances share the tables, or each has a schema of its own.
LAYOUTS_TRIED = {"shared": "2023", "split": "2026"}
WORKERS = 2
# Seconds: the default of --db-timeout.
DB_TIMEOUT = 2.0
# The load: requests that wait at each time, time-outs of these, requests a second that do not wait, and orders paid a second.
WAITING = 1000
TIMEOUTS = (2.0, 30.0)
RATE = 200
PAYMENTS = 8
# All who wait have come by then.
RAMP = 3.0
# Of the requests, how many go through nginx.
THROUGH_NGINX = 0.3
# A client that was answered before its time pauses for so long at most.
PAUSE = 1.0


# Stage

class Stage:
    """The servers of a row, and their history. A fault that needs others derives a class."""

    settings = {}  # of PostgreSQL
    options = ()   # of the pool
    prefix = ()    # of the pool's command
    waiting = WAITING
    pool_class = Pool
    # A fault of this stage lasts so many times as long as what comes before and after it.
    times = 0
    # It needs a program without sanitizers.
    plain = False
    seconds = 0
    db_timeout = DB_TIMEOUT

    def __init__(self, program, layout):
        self.program = program
        self.layout = layout
        self.timeline = Timeline()
        self.run = secrets.token_hex(3)
        self.load = None
        self.merchant = Merchant(random.Random(self.run), f"{MARKER}-{self.run}-", int(self.run, 16) << 16)

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            # They must not end before the processes that they started.
            self.threads = stack.enter_context(concurrent.futures.ThreadPoolExecutor(4))
            self.stack = stack
            self.postgres = self.make_cluster()
            self._make_tables()
            self.writer = Writer(self.postgres, DB, self.timeline, self.paths)
            stack.callback(self.writer.close)
            self.database = Database(self.postgres, DB, self.timeline, DB_TIMEOUT, self.paths["shop"])
            self.pool = self.make_pool()
            self.processes = Processes(self.pool, WORKERS, self.timeline)
            self.kept = stack.pop_all()
        return self

    def __exit__(self, *_):
        self.kept.close()

    def _make_tables(self):
        instances = ("admin", "shop", OTHER, THIRD)
        made = make_merchant(self.postgres, DB, instances, **LAYOUTS[LAYOUTS_TRIED[self.layout]])
        self.paths = {instance: f"{made.schema_of(instance)}, merchant" if self.layout == "split" else "merchant"
                      for instance in instances}

    def sql(self, text, instance="shop"):
        """Run SQL text where the tables of an instance are."""
        return self.postgres.psql(f"SET search_path = {self.paths[instance]}; {text}", DB)

    def make_cluster(self):
        return self.stack.enter_context(Postgres(**self.settings))

    def make_pool(self):
        return self.pool_class(self.program, f"--workers={WORKERS}", f"--db-timeout={DB_TIMEOUT * 1000:.0f}", *self.options,
                               database=self.conninfo(), prefix=self.prefix)

    def conninfo(self):
        """For the pool."""
        return self.postgres.conninfo(DB)

    @property
    def period(self):
        """Seconds that a long fault lasts."""
        return self.times * self.seconds

    def start(self):
        """The pool and nginx. They end before the cluster does."""
        with self.timeline.span(Kind.STARTING):
            self.kept.enter_context(self.pool)
        self.nginx = self.kept.enter_context(Nginx(http=upstream(self.pool.socket), server=location()))


# Load

class Load:
    """Requests that wait, others that do not, and orders that are paid meanwhile."""

    def __init__(self, stage, seconds):
        self.stage = stage
        self.chance = random.Random(stage.run)
        self.ending = asyncio.Event()
        # Orders of these never change.
        self.settled = {state: [self._key(f"{state}/{n}") for n in range(50)] for state in ("paid", "claimed", "offered")}
        self.settled["third"] = [self._key(f"third/{n}", THIRD) for n in range(20)]
        steps = {"paid": 3, "claimed": 2, "offered": 1, "third": 2}
        self.opening = [deed for state, keys in self.settled.items() for key in keys
                        for deed in stage.merchant.sale(key, [0] * steps[state])]
        self.sales, self.deeds = [], []
        self._draw_sales(seconds)

    def _key(self, name, instance="shop"):
        return Key(instance, f"{MARKER}-{self.stage.run}-{name}", f"https://shop.example/{MARKER}/{name.split('/')[0]}?a=1&b=2")

    def _draw_sales(self, seconds):
        """Most orders are claimed before it begins, others are offered and claimed while it runs."""
        for n in range(int(PAYMENTS * seconds)):
            key, paid = self._key(f"sale/{n}", "shop" if n % 5 else OTHER), self.chance.uniform(RAMP, seconds)
            moments = [0, 0, paid] if n % 4 else sorted(self.chance.uniform(RAMP, seconds) for _ in range(3))
            deeds = self.stage.merchant.sale(key, moments)
            self.sales.append(key)
            self.opening += [deed for deed in deeds if deed.at == 0]
            self.deeds += [deed for deed in deeds if deed.at > 0]
        self.deeds.sort(key=lambda deed: deed.at)

    async def run(self, peers):
        """Until `ending` is set, and all are answered."""
        waiting = [asyncio.create_task(self._wait_again_and_again(peers, n)) for n in range(self.stage.waiting)]
        await self._ask_at_rate(peers)
        await asyncio.gather(*waiting)

    async def _wait_again_and_again(self, peers, n):
        await self._pause(RAMP)
        while not self.ending.is_set():
            wait, begun = round(self.chance.uniform(*TIMEOUTS), 3), now()
            await self._ask(peers, self._awaited(n), wait)
            if now() - begun < wait:
                await self._pause(PAUSE)

    async def _pause(self, longest):
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.ending.wait(), self.chance.uniform(0, longest))

    def _awaited(self, n):
        """Half of them wait for an order that is going to be paid."""
        unpaid = self._paid_later() if self.chance.random() < 0.5 else None
        return unpaid or self.chance.choice([self._key(f"nobody/{n}"), self.chance.choice(self.settled["claimed"]),
                                             self.chance.choice(self.settled["third"])])

    def _paid_later(self):
        for key in self.chance.choices(self.sales, k=10):
            if self.stage.timeline.commits[key][-1].found.status != 200:
                return key
        return None

    async def _ask_at_rate(self, peers):
        tasks, begun = set(), now()
        for n in itertools.count():
            await asyncio.sleep(max(0, begun + n / RATE - now()))
            if self.ending.is_set():
                break
            task = asyncio.create_task(self._ask(peers, self._asked(n), 0))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    def _asked(self, n):
        return self.chance.choice([self._key(f"unknown/{n}"), self.chance.choice(self.sales),
                                   *(self.chance.choice(keys) for keys in self.settled.values())])

    async def _ask(self, peers, key, wait):
        kind = "browser" if self.chance.random() < THROUGH_NGINX else "shopper"
        await peers.run(kind, key, wait, 0)


# Row

@dataclasses.dataclass(frozen=True)
class Fault:
    """`kinds` is what its time counts as, and `logs` are patterns of lines that it may cause. Violations that match `conceivable`
    are counted apart: its docstring says why nobody could do better. The fault is not an excuse for the instances that it
    has `spared`. `layouts` are those that it is about. `checks` are what it asks of the answers beyond the judge: functions of the
    stage and all requests that yield (time, violation)."""
    run: typing.Callable
    kinds: tuple = (Kind.TROUBLE,)
    logs: tuple = tuple(Database.LOGS)
    stage: type = Stage
    conceivable: str = "(?!)"
    layouts: tuple = tuple(LAYOUTS_TRIED)
    spared: frozenset = frozenset()
    checks: tuple = ()

    @property
    def name(self):
        return self.run.__name__


FAULTS = {}


def fault(function=None, **properties):
    """Make the function a row."""
    if function is None:
        return functools.partial(fault, **properties)
    FAULTS[function.__name__] = Fault(function, **properties)
    return function


class Row:
    """A fault under load. Afterwards the attributes tell what happened."""

    HEAD = ("fault", "waiting", "requests", "paid while waiting", "violations", "conceivable", "longest after deadline", "lasted",
            "right again after", "answers")

    def __init__(self, program, chosen, seconds, layout):
        self.program = program
        self.layout = layout
        self.fault = chosen
        self.seconds = seconds
        self.asked = []
        self.waiting = 0
        self.violations = []
        self.conceivable = []

    def run(self):
        with self.fault.stage(self.program, self.layout) as self.stage:
            self.stage.seconds = self.seconds
            # Longer than most faults last.
            load = self.stage.load = Load(self.stage, (2 + self.stage.times) * self.seconds + 12)
            self.stage.writer.do(*load.opening)
            self.stage.start()
            asyncio.run(self._run(load))
            self.log = self.stage.log = self.stage.pool.log_lines()
        self._judge()

    async def _run(self, load):
        loop, stage = asyncio.get_running_loop(), self.stage
        peers = Peers(stage.pool.connect_to, stage.nginx.port, max_wait=50)
        self.asked = peers.asked
        watch = loop.create_task(watch_stalls(stage.timeline))
        loading = loop.create_task(load.run(peers))
        writing = loop.run_in_executor(stage.threads, stage.writer.run, load.deeds, now())
        try:
            await asyncio.sleep(RAMP + self.seconds)
            self.waiting = sum(asked.wait > 0 and asked.ended > now() for asked in peers.asked)
            await loop.run_in_executor(stage.threads, self._inject)
            await asyncio.sleep(self.seconds)
            # All who wait are answered when the pool is stopped. Those who have just come are not in question here.
            load.ending.set()
            await asyncio.sleep(1)
            await loop.run_in_executor(stage.threads, self._stop)
            await loading
        finally:
            stage.writer.stopped.set()
            watch.cancel()
            await writing

    def _inject(self):
        self.begun = now()
        with contextlib.ExitStack() as stack:
            if self.fault.kinds:
                stack.enter_context(self.stage.timeline.span(*self.fault.kinds))
            self.fault.run(self.stage)
        self.healed = now()
        self.stage.lasted = self.begun, self.healed

    def _stop(self):
        with self.stage.timeline.span(Kind.DOWN, Kind.LEAVING):
            self.stage.processes.stop_pool(signal.SIGTERM)

    def _judge(self):
        timeline = self.stage.timeline
        # A worker reads the clock once in a round of its loop. With a thousand answers in one, and others on the machine,
        # that may be as long ago as a stall that goes unnoticed.
        rules = Rules(DB_TIMEOUT, rounding=STALL)
        judge, strict = (Judge(of, rules, self.asked) for of in (timeline, timeline.without(*self.fault.kinds)))
        found = [(at, text) for at, text in timeline.violations]
        for asked in self.asked:
            verdicts = (strict if asked.key.instance in self.fault.spared else judge).verdicts(asked)
            found += [(asked.ended, f"{text}: {asked}") for text in verdicts]
        for check in self.fault.checks:
            found += check(self.stage, self.asked)
        allowed = [*self.fault.logs, *(Database.LOGS if timeline.spans[Kind.STALL] else ())]
        found += [(now(), f"in the log: {line}") for line in unexpected_lines(self.log, allowed, MARKER, LOG_LINE)]
        for at, text in sorted(found):
            (self.conceivable if re.search(self.fault.conceivable, text) else self.violations).append((at - self.begun, text))

    def cells(self):
        answers = collections.Counter(asked.status if asked.outcome is Outcome.ANSWERED else asked.outcome.value
                                      for asked in self.asked)
        late = max(asked.ended - asked.deadline for asked in self.asked if asked.outcome is Outcome.ANSWERED)
        paid = sum(asked.wait > 0 and asked.status == 200 for asked in self.asked)
        return (self.fault.name.replace("_", " "), self.waiting, len(self.asked), paid, len(self.violations),
                len(self.conceivable), f"{late:.2f} s", f"{self.healed - self.begun:.1f} s", f"{self._right_again():.2f} s",
                ", ".join(f"{status}: {count}" for status, count in sorted(answers.items(), key=str)))

    def _right_again(self):
        """Seconds from the end of the fault to the last answer that was a failure or late."""
        stop = self.stage.timeline.spans[Kind.DOWN][-1].begin
        bad = (asked.ended for asked in self.asked if self.healed < asked.ended < stop and (
            asked.status in (500, 502, 504) or asked.outcome is Outcome.CLOSED or asked.ended > asked.deadline + PROMPT))
        return max(bad, default=self.healed) - self.healed

    def tell(self, most=15):
        """The violations, and what the log has."""
        print(f"{self.fault.name}: {len(self.violations)} violations")
        rules = collections.Counter(re.sub(r"[0-9.]+", "N", text.split(": ")[0]) for _, text in self.violations)
        for rule, count in rules.most_common():
            print(f"  {count:5} x {rule}")
        for at, text in self.violations[:most]:
            print(f"  ! {at:.3f} s after the fault began, {text}")
        for line in self.log[-most:]:
            print(f"    log: {line}")


def raise_limits():
    """A descriptor for each who waits."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def sleep(seconds):
    """What is tested lasts as long."""
    threading.Event().wait(seconds)
