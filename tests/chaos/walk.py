# SPDX-License-Identifier: GPL-3.0-or-later
"""A random walk of the whole: a seed makes a plan of peers, payments and faults; each answer is judged afterwards.

walk.py --program PROGRAM [--minutes N | --seed N] [--seconds N] [--only KIND,...] [--without KIND,...]

The same seed makes the same plan each time; what happens when, and so what is answered, may differ.
Exits with 1 if there was a violation.
"""

import argparse
import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import math
import pathlib
import random
import re
import secrets
import signal
import socket
import statistics
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "e2e")]

import faults  # noqa: E402
from faults import Database, Processes  # noqa: E402
from history import Judge, Kind, Outcome, Rules, Span, Timeline, now  # noqa: E402
from merchant import MARKER  # noqa: E402
from peers import Peers, watch_stalls  # noqa: E402
from processes import wait_until  # noqa: E402
from servers import LOG_LINE, Nginx, Pool, Postgres, location, make_shop, upstream  # noqa: E402
from shop import Key, Merchant, Writer  # noqa: E402

DB = "shop"
KINDS = {*Database.KINDS, *Processes.KINDS, *Peers.ORDINARY, *Peers.RUDE, Peers.CUSTOMER, "hunghost", "descriptors", "relapse"}
# An outage, a long time in which nobody asks, and a short outage: seconds, the lull, the faults of the database.
RELAPSE = (22, (1, 18), [(1, "away", {"seconds": 5}), (18, "restart", {"seconds": 0.1})])


# The plan

@dataclasses.dataclass
class Setup:
    """Options of the pool. Times in milliseconds, as on the command line."""
    workers: int
    poll_interval: int
    db_timeout: int
    max_wait: int
    max_waiting: int
    descriptors: int | None  # the hard limit on open files
    hung_host: bool          # the first of the database's hosts takes connections and never answers

    def options(self):
        return [f"--{name.replace('_', '-')}={getattr(self, name)}"
                for name in ("workers", "poll_interval", "db_timeout", "max_wait", "max_waiting")]

    def prefix(self):
        """Of the pool's command."""
        return ["prlimit", f"--nofile={self.descriptors}:{self.descriptors}", "--"] if self.descriptors else []

    def rules(self):
        timeout = self.db_timeout / 1000
        return Rules(timeout, self.max_waiting, timeout + 0.2 if self.hung_host else 0.0)


@dataclasses.dataclass
class Plan:
    seed: int
    seconds: float
    setup: Setup
    keys: list
    opening: list  # deeds done before the pool starts
    deeds: list
    faults: dict   # Database, Processes -> [(at, kind, parameters)]
    peers: list    # (at, kind, key, wait in seconds, seed)


def draw_setup(chance):
    return Setup(workers=chance.choice([1, 2, 2, 3]), poll_interval=chance.choice([50, 100, 250]),
                 db_timeout=chance.choice([800, 1200, 2000]), max_wait=chance.choice([50000] * 8 + [3000, 1500]),
                 max_waiting=chance.choice([8192] * 8 + [30, 5]), descriptors=chance.choice([None] * 8 + [90, 150]),
                 hung_host=chance.random() < 1 / 10)


def draw_faults(chance, track, seconds, db_timeout, others):
    """Faults one after the other; most begin while one of the `others`, spans (begin, end), is going on."""
    plan, at, rest = [], chance.uniform(0.3, 2), chance.choice([3, 8])
    while at < seconds:
        later = [span for span in others if span[1] > at]
        if later and chance.random() < 0.7:
            at = chance.uniform(max(at, later[0][0]), later[0][1])
        kind = chance.choices(list(track.KINDS), track.KINDS.values())[0]
        parameters = track.draw(chance, kind, db_timeout)
        plan.append((round(at, 3), kind, parameters))
        at += parameters["seconds"] + chance.uniform(0.1, rest)
    return plan


def current_keys(keys, at):
    """Those that are asked about and dealt with at this time: most others are paid already, or not yet known."""
    begin = int(max(at, 0))
    return keys[begin:begin + 6]


def draw_peers(chance, keys, seconds, moments, lull):
    """Peers arrive at random, but for a lull (begin, end); the deadlines of some coincide with one of the `moments`."""
    kinds = {**Peers.ORDINARY, **Peers.RUDE}
    plan, at = [], 0.0
    while (at := at + chance.expovariate(chance.choice([30, 60, 120]))) < seconds:
        kind = chance.choices(list(kinds), kinds.values())[0]
        wait = chance.choice([0, 0.05, 0.2, 0.5, 1, 1.5, 2.5, 3, 4, 6])
        later = [moment for moment in moments if 0 < moment - at < 5]
        if later and chance.random() < 0.3:
            wait = max(0, chance.choice(later) - at + chance.uniform(-0.05, 0.05))
        seed = chance.randrange(2 ** 32)
        if not lull[0] <= at < lull[1]:
            wait = min(wait, seconds + 3 - at)
            plan.append((round(at, 3), kind, chance.choice(current_keys(keys, at)), round(wait, 3), seed))
    return plan


def draw_customers(chance, merchant, prefix, seconds):
    """Shoppers with a session of their own, as in a real shop: offered, claimed and most often paid while one request waits."""
    peers, deeds = [], []
    for n in range(int(3 * seconds)):
        at = chance.uniform(0, seconds - 1)
        key = Key("shop", f"{prefix}customer/{n}", f"https://shop.example/{prefix}{n % 3}")
        peers.append((round(at, 3), Peers.CUSTOMER, key, 6, chance.randrange(2 ** 32)))
        moments = sorted(at + chance.uniform(-0.5, 3) for _ in range(3))
        deeds += merchant.sale(key, [round(moment, 3) for moment in moments[chance.choice([0, 0, 1]):]])
    return peers, deeds


def burst(at, every=3, length=0.3):
    """The time moved to within a burst: between two the database is quiet, and what was missed stays missed."""
    return at // every * every + at % every * length / every


def make_plan(seed, seconds, chosen=frozenset(KINDS), prefix=MARKER, serial=1000):
    """Each part has a random.Random of its own: leaving kinds out does not change the rest."""
    def part(name):
        return random.Random(f"{seed} {name}")

    def only(events):
        return [event for event in events if event[1] in chosen]

    relapse = "relapse" in chosen and part("relapse").random() < 0.1
    seconds = RELAPSE[0] if relapse else seconds
    setup = draw_setup(part("setup"))
    setup.hung_host &= "hunghost" in chosen
    setup.descriptors = setup.descriptors if "descriptors" in chosen else None
    keys = [Key(part(f"instance {n}").choice(["shop", "shop", "shop", ""]), f"{prefix}ä/{n}",
                f"https://shop.example/{prefix}{n % 4}?a=1&b=2") for n in range(int(seconds) + 7)]
    merchant = Merchant(part("merchant"), prefix, serial)
    opening = [merchant.deed(-1, current_keys(keys, 0)) for _ in range(8)]
    chance = part("deeds")
    deeds = [merchant.deed(round(at, 3), current_keys(keys, at))
             for at in sorted(chance.uniform(0, seconds) for _ in range(int(6 * seconds)))]
    customers, sales = draw_customers(part("customers"), merchant, prefix, seconds)
    deeds = sorted(deeds + sales, key=lambda deed: deed.at)
    if part("bursts").random() < 0.4:
        for deed in deeds:
            deed.at = burst(deed.at)
    lull = part("lull").uniform(0, 2 * seconds)
    lull = (lull, lull + 3)
    chance, timeout = part("faults"), setup.db_timeout / 1000
    database = only(draw_faults(chance, Database, seconds, timeout, []))
    database = database if chance.random() < 0.7 else []
    within = [(at, at + parameters["seconds"] + 0.3) for at, _, parameters in database]
    processes = only(draw_faults(chance, Processes, seconds, timeout, within))
    processes = processes if chance.random() < 0.7 else []
    if relapse:
        lull, database, processes = *RELAPSE[1:], []
    moments = [deed.at for deed in deeds] + [at for span in within for at in span] + [at for at, *_ in processes] * 3
    customers = [event for event in customers if not lull[0] <= event[0] < lull[1]]
    peers = only(sorted(draw_peers(part("peers"), keys, seconds, moments, lull) + customers))
    return Plan(seed, seconds, setup, keys, opening, deeds, {Database: database, Processes: processes}, peers)


# The walk

class Stage:
    """What outlives a walk: the cluster, and the threads, which must not end before the processes that they started."""

    def __enter__(self):
        self.threads = concurrent.futures.ThreadPoolExecutor(4)
        self.postgres = Postgres().__enter__()
        make_shop(self.postgres, DB)
        self.hung = socket.create_server(("127.0.0.1", 0), backlog=4096)
        return self

    def __exit__(self, *_):
        self.hung.close()
        self.postgres.__exit__()
        self.threads.shutdown()

    def conninfo(self, hung_host):
        whole = self.postgres.conninfo(DB)
        if not hung_host:
            return whole
        directory, port = self.postgres.directory, self.postgres.port
        return (whole.replace(f"host={directory}", f"host=127.0.0.1,{directory}")
                .replace(f"port={port}", f"port={self.hung.getsockname()[1]},{port}"))


class Walk:
    """One plan carried out. Afterwards `timeline` and `asked` tell what happened, and `violations` what was wrong."""

    def __init__(self, program, plan, stage):
        self.plan = plan
        self.stage = stage
        self.timeline = Timeline()
        self.pool = Pool(program, *plan.setup.options(), database=stage.conninfo(plan.setup.hung_host), prefix=plan.setup.prefix())
        self.writer = Writer(stage.postgres, DB, self.timeline)
        self.stopped = threading.Event()
        self.asked = []
        self.violations = []
        self.pool_log = []

    def run(self):
        try:
            for deed in self.plan.opening:
                self.writer.do(deed)
            with self.timeline.span(Kind.STARTING):
                self.pool.__enter__()
            with Nginx(http=upstream(self.pool.socket), server=location()) as nginx:
                asyncio.run(self._walk(nginx))
            self._end()
            self.pool_log = self.pool.log_lines()
        finally:
            self.stopped.set()
            self.writer.stopped.set()
            self.writer.close()
            self.pool.__exit__()
        self._judge()

    async def _walk(self, nginx):
        loop = asyncio.get_running_loop()
        peers = Peers(self.pool.connect_to, nginx.port, self.plan.setup.max_wait / 1000)
        self.asked = peers.asked
        watch = loop.create_task(watch_stalls(self.timeline))
        await self._settle(peers)
        tracks = {Database: Database(self.stage.postgres, DB, self.timeline, self.plan.setup.db_timeout / 1000),
                  Processes: Processes(self.pool, self.plan.setup.workers, self.timeline)}
        begun = now()
        running = [loop.run_in_executor(self.stage.threads, faults.run, track, self.plan.faults[kind], begun,
                                        self.timeline, self.stopped) for kind, track in tracks.items()]
        running.append(loop.run_in_executor(self.stage.threads, self.writer.run, self.plan.deeds, begun))
        try:
            await asyncio.gather(self._send_peers(peers, begun), *running)
            await self._ask_all(peers)
        finally:
            self.stopped.set()
            self.writer.stopped.set()
            watch.cancel()

    async def _settle(self, peers):
        """Wait for the workers to be connected, and note how many descriptors one has open then."""
        await self._ask_all(peers)
        await asyncio.sleep(0.3)
        self.descriptors = self.pool.descriptors_open()

    async def _ask_all(self, peers):
        """Every key once, without waiting."""
        await asyncio.gather(*(peers.run("shopper", key, 0, 0) for key in self.plan.keys))

    async def _send_peers(self, peers, begun):
        tasks = []
        for at, kind, key, wait, seed in self.plan.peers:
            await asyncio.sleep(max(0, begun + at - now()))
            self.timeline.counts[f"peer: {kind}"] += 1
            if kind in Peers.RUDE:
                self.timeline.note(f"{kind} comes, {key}, wait {wait}")
            tasks.append(asyncio.create_task(peers.run(kind, key, wait, seed)))
        await asyncio.gather(*tasks)

    def _end(self):
        """Nobody asks any more, and nginx, which keeps connections, is gone."""
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: self.pool.descriptors_open() <= self.descriptors, 7)
        if self.pool.descriptors_open() > self.descriptors:
            self.timeline.violation(f"{self.pool.descriptors_open()} descriptors are open at the end, {self.descriptors} at the start")
        Processes(self.pool, self.plan.setup.workers, self.timeline).stop_pool(signal.SIGTERM)
        for line in faults.unexpected_lines(self.pool.log_lines(), self._expected_lines(), MARKER, LOG_LINE):
            self.timeline.violation(f"in the log: {line}")

    def _expected_lines(self):
        injected = {kind for events in self.plan.faults.values() for _, kind, _ in events}
        lines = [line for kind in injected for line in Processes.LOGS.get(kind, [])]
        if injected & set(Database.KINDS) or self.plan.setup.hung_host or self.timeline.spans[Kind.STALL]:
            lines += Database.LOGS
        if self.plan.setup.descriptors:
            lines += Processes.LOGS["short"]
        return lines

    def _judge(self):
        if self.plan.setup.descriptors:
            self.timeline.spans[Kind.SHORT].append(Span(-math.inf, math.inf))
        judge = Judge(self.timeline, self.plan.setup.rules(), self.asked)
        self.violations = [(at, text) for at, text in self.timeline.violations]
        for asked in self.asked:
            self.violations += [(asked.ended, f"{text}: {asked}") for text in judge.verdicts(asked)]
        self.violations.sort()


# The report

class Report:
    """Figures of all walks so far."""

    def __init__(self):
        self.seeds = 0
        self.violated = []  # seeds
        self.counts = collections.Counter()
        self.answers = collections.Counter()
        self.violations = 0
        self.latencies = []
        self.longest = 0.0

    def add(self, walk):
        self.seeds += 1
        self.counts += walk.timeline.counts
        self.violations += len(walk.violations)
        self.violated += [walk.plan.seed] if walk.violations else []
        for asked in walk.asked:
            if asked.outcome is Outcome.ANSWERED:
                self.answers[asked.status] += 1
                self.longest = max(self.longest, asked.ended - asked.deadline)
            else:
                self.answers[asked.outcome.value] += 1
        self.latencies += walk_latencies(walk)

    def table(self):
        rows = [("seeds", self.seeds), ("requests", sum(self.answers.values()))]
        rows += [(f"answer: {status}", count) for status, count in sorted(self.answers.items(), key=str)]
        rows += sorted(self.counts.items())
        rows += [("longest answer after its deadline", f"{self.longest:.3f} s")]
        if len(self.latencies) > 1:
            cuts = statistics.quantiles(self.latencies, n=100)
            rows += [(f"COMMIT to answer while healthy, p{n}", f"{1000 * cuts[n - 1]:.0f} ms") for n in (50, 99)]
        rows += [("violations", self.violations), *(("with violations: seed", seed) for seed in self.violated)]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"| {name:{width}} | {value:>9} |" for name, value in rows)


def walk_latencies(walk):
    """Seconds from the return of a COMMIT to the answer of those who waited for it, while all was well."""
    for asked in walk.asked:
        if asked.outcome is not Outcome.ANSWERED or asked.status != 200:
            continue
        paid = next((commit for commit in walk.timeline.commits[asked.key] if commit.found.status == 200), None)
        if paid and paid.sent > asked.arrived and not any(
                walk.timeline.met(kind, paid.sent - 1, asked.ended) for kind in Judge.DISTURBING):
            yield max(0.0, asked.ended - paid.done)


def tell(walk, last=25, most=20):
    """The violations of a walk, and the last events before the first of them."""
    print(f"seed {walk.plan.seed}: {len(walk.violations)} violations; {walk.plan.setup}")
    rules = collections.Counter(re.sub(r"[0-9.]+", "N", text.split(": ")[0]) for _, text in walk.violations)
    for rule, count in rules.most_common():
        print(f"  {count:5} x {rule}")
    first = walk.violations[0][0]
    for at, text in [event for event in walk.timeline.events if event[0] <= first][-last:]:
        print(f"    {at:.3f} {text}")
    for at, text in walk.violations[:most]:
        print(f"  ! {at:.3f} {text}")
    for line in walk.pool_log[-last:]:
        print(f"    log: {line}")


def walk_seed(program, seed, stage, seconds, chosen=frozenset(KINDS)):
    """Carry out one seed on a stage and return the Walk."""
    run = secrets.token_hex(3)
    plan = make_plan(seed, seconds, chosen, f"{MARKER}-{run}-", int(run, 16) << 16)
    walk = Walk(program, plan, stage)
    walk.run()
    return walk


def read_arguments():
    parser = argparse.ArgumentParser(prog="tests/chaos/run")
    parser.add_argument("--program", required=True)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, help="the first one; those that follow are one more each")
    parser.add_argument("--once", action="store_true", help="this seed alone")
    parser.add_argument("--seconds", type=float, default=8, help="of a walk, before its last answers")
    for name in ("only", "without"):
        parser.add_argument(f"--{name}", type=lambda text: set(text.split(",")), default=set(), metavar="KIND,...",
                            help="faults and peers: " + ", ".join(sorted(KINDS)) if name == "only" else "leave these out")
    arguments = parser.parse_args()
    unknown = (arguments.only | arguments.without) - KINDS
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    arguments.chosen = (arguments.only | {*Peers.ORDINARY, Peers.CUSTOMER} if arguments.only else KINDS) - arguments.without
    return arguments


def main():
    arguments = read_arguments()
    report, end = Report(), time.monotonic() + 60 * arguments.minutes
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(10 ** 6)
    with Stage() as stage:
        while time.monotonic() < end:
            print(f"seed {seed}", flush=True)
            walk = walk_seed(arguments.program, seed, stage, arguments.seconds, arguments.chosen)
            report.add(walk)
            if walk.violations:
                tell(walk)
            if arguments.once:
                break
            seed += 1
    print(report.table())
    sys.exit(report.violations > 0)


if __name__ == "__main__":
    main()
