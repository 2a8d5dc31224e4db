# SPDX-License-Identifier: GPL-3.0-or-later
"""Long polls parked on one worker, no web server between: what they cost, and from COMMIT to the answer."""

import contextlib
import pathlib
import random
import subprocess
import sys
import time

import candidates
import processes
from processes import free_port, start, wait_until
from waiters import TIMEOUT_MS, Waiters

# The part of the parked that is claimed at any time: orders that the shopper is about to confirm in the wallet.
CLAIMED_SHARE = 0.01
CLAIMED_LEAST = 20
COMMITS_PER_SECOND = 100
# Seconds between payments, at random: where nothing else commits there is to be some quiet between them.
QUIET_PAUSE = (0.05, 0.15)
BUSY_PAUSE = (0.02, 0.08)
# What polling may take at once, from the quiet time before, is used up after that.
BUSY_WARM_UP = 3
DELAY_MS = 10
LOCK_SECONDS = 1
DELAY = pathlib.Path(__file__).resolve().parent / "delay.py"


class Scene:
    """The program with one worker, and `parked` visitors who wait on it.

    `claimed` of them have a contract that is not paid. A transaction that pays one has the next visitor claim, so that
    it stays at that number and no other commit is needed.
    """

    def __init__(self, stack, build, database, conninfo, parked, claimed, payments):
        self.database = database
        self._stack = stack
        self._session = stack.enter_context(database.session())
        # Each payment has one more visitor come in.
        self._visitors = database.visitors(parked + payments)
        self._lines = {visitor: line for line, visitor in enumerate(self._visitors)}
        self._paying = iter(random.sample(self._visitors[:parked], min(parked, payments + claimed)))
        self._about_to_pay = [next(self._paying) for _ in range(claimed)] if claimed < parked else []
        self._everybody = claimed >= parked
        self._parked = parked
        self._start(build, conninfo)

    def _start(self, build, conninfo):
        claimed = self._visitors if self._everybody else self._about_to_pay
        self._session.run("; ".join(["BEGIN", *(visitor.claims() for visitor in claimed), "COMMIT"]))
        self.pool = self._stack.enter_context(candidates.program(
            build, conninfo, "--workers", 1, "--max-waiting", 2 * self._parked, "--max-wait", TIMEOUT_MS))
        candidates.check_directly(self.pool)
        time.sleep(0.2)  # the worker has closed that connection by then, and its descriptors can be counted
        worker, = self.pool.workers()
        self.waiters = self._stack.enter_context(
            Waiters(build, self._visitors, [self.pool.socket], worker, self._parked))

    def wait_parked(self):
        self.waiters.wait_parked()

    def cost(self, seconds):
        """CPU of the program and of the database, as shares of a core."""
        backends = processes.Running(self._backends())
        program = processes.Running([self.pool.pid, *self.pool.workers()])
        cluster = processes.Cpu(cluster=self.database.postgres)
        begun = time.monotonic()
        time.sleep(seconds)
        spent = {"backend": backends.seconds(), "program": program.seconds(), **cluster.seconds()}
        took = time.monotonic() - begun
        return {part: value / took for part, value in spent.items()}

    def _backends(self):
        backends = self.database.backends()
        if not backends:
            raise RuntimeError("the program has no connection to the database")
        return backends

    def claimed_payments(self, count):
        """(visitor, statements that pay) of visitors whose contract is parked already."""
        for _ in range(count):
            following = next(self._paying)
            if self._everybody:
                yield following, following.pays()
                continue
            self._about_to_pay.append(following)
            visitor = self._about_to_pay.pop(0)
            yield visitor, f"{visitor.pays()}; {following.claims()}"

    def unclaimed_payments(self, count):
        """(visitor, statements that pay) of visitors without a contract; every other one has an offer."""
        visitors = [next(self._paying) for _ in range(count)]
        for visitor in visitors[::2]:
            self._session.run(visitor.is_offered())
        for number, visitor in enumerate(visitors):
            yield visitor, visitor.pays_without_claim() if number % 2 else visitor.pays_offer()

    def pay(self, payments, pause):
        """Pay one after another; return the milliseconds from the return of COMMIT to the answer, sorted."""
        commits = {}
        for visitor, statements in payments:
            time.sleep(random.uniform(*pause))
            self._session.run(f"BEGIN; {statements}")
            called = time.monotonic()
            self._session.run("COMMIT")
            commits[self._lines[visitor]] = called, time.monotonic()
        return sorted(self._latencies(commits))

    def _latencies(self, commits):
        wait_until(lambda: commits.keys() <= self.waiters.answers().keys(), 60, "answers to the payments")
        answers = self.waiters.answers()
        for line, (called, returned) in commits.items():
            status, arrival = answers[line]
            if status != 200 or arrival < called:
                raise RuntimeError(f"status {status}, {arrival - called:.3f} s after COMMIT was called")
            yield max(0, arrival - returned) * 1000

    def pay_after_lock(self):
        """A batch is held up once for LOCK_SECONDS, by a lock; then there is a payment: its milliseconds."""
        payments = self.claimed_payments(1)
        with self.database.session() as locker:
            locker.run("BEGIN; LOCK TABLE merchant.merchant_contract_terms IN ACCESS EXCLUSIVE MODE")
            # Something was committed, so that there is a reason to ask.
            self._session.run("CREATE TABLE IF NOT EXISTS bench.something (); DROP TABLE bench.something")
            time.sleep(LOCK_SECONDS)
            locker.run("COMMIT")
        latency, = self.pay(payments, pause=(0, 0.05))
        time.sleep(1)
        return latency


def _payments(quick):
    """For a median and a p99."""
    return 30 if quick else 200


def claimed_of(parked):
    return max(CLAIMED_LEAST, round(parked * CLAIMED_SHARE))


def measure(parked, everybody, build, database, quick):
    """The figures with `parked` long polls: of visitors most of whom have no order, or who all have a contract."""
    payments = _payments(quick) // (2 if everybody else 1)
    idle_seconds, busy_seconds = (4, 3) if quick else (8, 6)
    claimed = parked if everybody else claimed_of(parked)
    with contextlib.ExitStack() as stack:
        scene = Scene(stack, build, database, database.database, parked, claimed, 3 * payments)
        scene.wait_parked()
        figures = {"parked": parked, "claimed": claimed, "idle": scene.cost(idle_seconds),
                   "alone": scene.pay(scene.claimed_payments(payments), QUIET_PAUSE)}
        commits = stack.enter_context(database.disturbed(COMMITS_PER_SECOND))
        begun = time.monotonic()
        time.sleep(BUSY_WARM_UP)
        figures["busy"] = scene.cost(busy_seconds)
        figures["disturbed"] = scene.pay(scene.claimed_payments(payments), BUSY_PAUSE)
        if not everybody:
            figures["unclaimed"] = scene.pay(scene.unclaimed_payments(payments), BUSY_PAUSE)
        figures["commits"] = commits() / (time.monotonic() - begun)
        return figures


@contextlib.contextmanager
def _delayed(port):
    """A port behind which is `port`, DELAY_MS away."""
    near = free_port()
    with start([sys.executable, DELAY, near, port, DELAY_MS], stdout=subprocess.PIPE) as road:
        try:
            if road.stdout.readline() != b"ready\n":
                raise RuntimeError("delay.py does not listen")
            yield near
        finally:
            road.kill()


def measure_far(parked, build, database, quick):
    """The figures with a database that is DELAY_MS away, each way."""
    payments, locks = _payments(quick), 1 if quick else 5
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(_delayed(database.postgres.port))
        scene = Scene(stack, build, database, database.distant(port), parked, claimed_of(parked), payments + locks)
        scene.wait_parked()
        return {"parked": parked, "claimed": claimed_of(parked),
                "alone": scene.pay(scene.claimed_payments(payments), QUIET_PAUSE),
                "after_lock": sorted(scene.pay_after_lock() for _ in range(locks))}
