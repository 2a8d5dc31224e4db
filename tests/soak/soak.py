# SPDX-License-Identifier: GPL-3.0-or-later
"""A long run: mixed load with mild faults, sampled into a CSV, and a verdict at the end.

soak.py --program PROGRAM --minutes N [--requests N] [--seed N] [--output DIRECTORY]

Two pools stand behind one nginx. The workers of the steady pool live as long as the run, so that a leak can be seen.
Those of the replaced pool are replaced by SIGHUP, or killed. Both meet the faults of the database; its backends are
ended in the first two thirds of the run only, since a backend that ends takes along what it has leaked.

Exits with 1 if an answer was untrue, late or missing, if something has grown, or if there were too few requests.
"""

import argparse
import asyncio
import collections
import concurrent.futures
import contextlib
import datetime
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import threading

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / name) for name in ("chaos", "", "e2e"))]

import faults  # noqa: E402
import sampling  # noqa: E402
import verdict  # noqa: E402
from faults import Database, Processes  # noqa: E402
from history import Rules, Timeline, now  # noqa: E402
from load import Bulk, Catalogue, Shoppers  # noqa: E402
from merchant import MARKER  # noqa: E402
from processes import wait_until  # noqa: E402
from servers import LOG_LINE, Nginx, Pool, Postgres, location, make_shop, upstream  # noqa: E402
from shop import Merchant, Writer  # noqa: E402

DB = "shop"
WORKERS = 2
SAMPLE_EVERY = 10.0
# Each fault: how often in seconds, and the part of the run in which it comes.
FAULTS = {Database: {"restart": (240, 2 / 3), "terminate": (97, 2 / 3), "lock": (61, 1)},
          Processes: {"hup": (211, 1), "kill": (149, 1)}}
LOCK_SECONDS = 1.0
CALM_FROM = 2 / 3
# wrk sends a little more than the goal: a run may end while it has to catch up.
MORE = 1.06


def make_plan(chance, seconds):
    """Track -> [(at, kind, parameters)]. In a short run each fault comes twice at least."""
    def events(kind, every, part):
        every = min(every, seconds * part / 3)
        at = every * chance.uniform(0.6, 0.9)
        while at < seconds * part:
            yield at, kind, {"seconds": LOCK_SECONDS if kind == "lock" else 0, "tables": chance.choice(faults.TABLES),
                             "times": 1, "victim": chance.randrange(WORKERS)}
            at += every

    def in_order(kinds):
        planned = [event for kind, how in kinds.items() for event in events(kind, *how)]
        return sorted(planned, key=lambda event: event[:2])

    return {track: in_order(kinds) for track, kinds in FAULTS.items()}


class Soak:
    def __init__(self, arguments):
        self.seconds = round(arguments.minutes * 60)
        self.goal = arguments.requests
        self.program = arguments.program
        self.csv = arguments.output / "soak.csv"
        self.curves = arguments.output / "soak.png"
        self.chance = random.Random(arguments.seed)
        self.timeline = Timeline()
        # Of an hour there would be too many to keep.
        self.timeline.events = collections.deque(maxlen=1000)
        self.merchant = Merchant(random.Random(arguments.seed), f"{MARKER}-", 1000)
        self.catalogue = Catalogue(self.merchant, self.timeline)
        self.stopped = threading.Event()
        self.growths = []
        self.totals = {}

    def run(self):
        with contextlib.ExitStack() as stack:
            # Its threads must not end before the processes that they started.
            self.threads = stack.enter_context(concurrent.futures.ThreadPoolExecutor(4))
            self.postgres = stack.enter_context(Postgres(autovacuum="on"))
            database = make_shop(self.postgres, DB)
            self.catalogue.write(self.postgres, DB)
            self.pools = {name: stack.enter_context(Pool(self.program, "--workers", WORKERS, database=database))
                          for name in ("steady", "replaced")}
            self.nginx = stack.enter_context(Nginx(http=self._upstream(), server=location()))
            self.table = sampling.Table(self.csv)
            stack.callback(self.table.close)
            self._run_load()
            self._end()
        self.growths = verdict.growths(self.table.rows, self.seconds, CALM_FROM * self.seconds, WORKERS)

    def _upstream(self):
        """The shipped upstream with a line for each pool."""
        lines = [f"server unix:{pool.socket} max_fails=0;" for pool in self.pools.values()]
        return upstream(self.pools["steady"].socket).replace(lines[0], "\n".join(lines))

    def _run_load(self):
        self.samplers = [*(sampling.PoolSampler(name, pool, WORKERS) for name, pool in self.pools.items()),
                         sampling.DatabaseSampler(self.postgres)]
        wait_until(lambda: all(sampling.scrape(pool)["database_up"] == WORKERS for pool in self.pools.values()),
                   what="all workers connected")
        rate = MORE * self.goal / self.seconds
        with Bulk(self.nginx.directory, self.nginx.port, self.catalogue, self.seconds, rate) as bulk:
            asyncio.run(self._run_all(bulk))

    async def _run_all(self, bulk):
        loop = asyncio.get_running_loop()
        self.begun = now()
        self.shoppers = Shoppers(list(self.pools.values()), self.nginx.port, self.timeline, Rules(2.0), self.catalogue,
                                 self.merchant, self.chance.random())
        writer = Writer(self.postgres, DB, self.timeline)
        tracks = {Database: Database(self.postgres, DB, self.timeline, 2.0),
                  Processes: Processes(self.pools["replaced"], WORKERS, self.timeline)}
        plan = make_plan(self.chance, self.seconds)
        running = [loop.run_in_executor(self.threads, faults.run, track, plan[kind], self.begun, self.timeline,
                                        self.stopped) for kind, track in tracks.items()]
        writing = loop.run_in_executor(self.threads, writer.run, self.shoppers.deeds, 0.0)
        try:
            await asyncio.gather(self.shoppers.run(self.seconds, bulk), self._sample_always(), *running)
            self.totals = await loop.run_in_executor(self.threads, bulk.totals)
        finally:
            self.stopped.set()
            self.shoppers.deeds.close()
            writer.stopped.set()
            await asyncio.gather(writing, return_exceptions=True)
            writer.close()
        self.shoppers.judge_rest(bulk)

    async def _sample_always(self):
        every = min(SAMPLE_EVERY, self.seconds / 40)
        for number in range(round(self.seconds / every) + 1):
            await asyncio.sleep(max(0, self.begun + number * every - now()))
            await self._sample()

    async def _sample(self):
        row = {"seconds": round(now() - self.begun, 2)}
        row |= await asyncio.get_running_loop().run_in_executor(self.threads, self._processes)
        row |= sampling.latency_row(*self.shoppers.latencies())
        row |= {"judged": sum(self.shoppers.outcomes.values()), "violations": len(self.timeline.violations),
                "driver_own": sampling.own_memory()}
        self.table.add(row)

    def _processes(self):
        return {name: value for sampler in self.samplers for name, value in sampler.row().items()}

    def _end(self):
        """Nobody asks any more."""
        for name, pool in self.pools.items():
            try:
                wait_until(lambda pool=pool: sampling.scrape(pool)["waiting"] == 0, 5, "no one waiting")
            except TimeoutError:
                self.timeline.violation(f"{name}: {sampling.scrape(pool)['waiting']:.0f} still wait, but no one asks")
        self._check_steady_workers()
        self.nginx.stop()
        for name, pool in self.pools.items():
            Processes(pool, WORKERS, self.timeline).stop_pool(signal.SIGTERM)
            for line in faults.unexpected_lines(pool.log_lines(), self._expected(name), MARKER, LOG_LINE):
                self.timeline.violation(f"in the log of the {name} pool: {line}")

    def _check_steady_workers(self):
        """A worker that was replaced would have taken along what it has leaked."""
        samples = sampling.scrape(self.pools["steady"])
        ended = sum(samples[f'worker_restarts_total{{reason="{reason}"}}'] for reason in ("died", "replaced"))
        if ended:
            self.timeline.violation(f"{ended:.0f} workers of the steady pool have ended")

    @staticmethod
    def _expected(name):
        return Database.LOGS + (Processes.LOGS["kill"] if name == "replaced" else [])

    # The verdict

    def unanswered(self):
        """Of the bulk. Each thread has one under way when its time is over."""
        under_way = self.totals["asked"] - self.totals["answered"]
        errors = sum(self.totals[name] for name in ("connect", "read", "write", "timeout"))
        return max(0, under_way - self.totals["threads"]) + errors

    def requests(self):
        """All that were answered. What wrk had answered otherwise than foreseen is among its own."""
        return self.totals["answered"] + sum(count for (peer, outcome), count in self.shoppers.outcomes.items()
                                             if peer != "bulk" and isinstance(outcome, int))

    def verdict(self):
        """What was wrong, as a list of words; empty if all was well."""
        wrong = {"violations": self.timeline.violations, "requests without an answer": self.unanswered(),
                 "growth": any(growth.excessive for growth in self.growths),
                 f"fewer requests than {self.goal}": self.requests() < self.goal}
        return [name for name, found in wrong.items() if found]

    def print(self):
        outcomes = {f"{peer}: {outcome}": count for (peer, outcome), count in self.shoppers.outcomes.items()}
        table = {"requests": self.requests(), "of which by wrk": self.totals["answered"],
                 "without an answer": self.unanswered(), **dict(sorted(outcomes.items())),
                 **dict(sorted(self.timeline.counts.items())), "violations": len(self.timeline.violations)}
        for name, value in table.items():
            print(f"{name:54} {value:>10}")
        print(f"\n{'medians':36} {'early':>10} {'late':>10} {'may grow':>8}")
        print("\n".join(map(str, self.growths)))
        for at, text in sorted(self.timeline.violations)[:50]:
            print(f"! {at - self.begun:.3f} {text}")
        print("\n" + ("not ok: " + ", ".join(self.verdict()) if self.verdict() else "ok"))

    def draw(self):
        variables = {"CSV": self.csv, "PNG": self.curves, "CALM_FROM": CALM_FROM * self.seconds / 60}
        subprocess.run(["gnuplot", HERE / "curves.gp"], check=True,
                       env={**os.environ, **{f"SOAK_{name}": str(value) for name, value in variables.items()}})


def read_arguments(words=None):
    parser = argparse.ArgumentParser(prog="tests/soak/run")
    parser.add_argument("--program", required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--requests", type=int, help="how many there have to be; default: ten million an hour")
    parser.add_argument("--seed", type=int, default=1, help="of chance")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path.cwd(), metavar="DIRECTORY",
                        help="where soak.csv and soak.png go; default: the current one")
    arguments = parser.parse_args(words)
    arguments.output.mkdir(parents=True, exist_ok=True)
    arguments.requests = arguments.requests or round(10_000_000 / 3600 * 60 * arguments.minutes)
    return arguments


def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    soak = Soak(read_arguments())
    print(f"begun {datetime.datetime.now():%Y-%m-%d %H:%M:%S}", flush=True)
    soak.run()
    soak.print()
    soak.draw()
    sys.exit(bool(soak.verdict()))


if __name__ == "__main__":
    main()
