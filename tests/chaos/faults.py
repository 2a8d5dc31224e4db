# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done to the database and to the pool during a walk. Each fault notes in the timeline when it was.

A fault is a method of `Database` or `Processes`, which are the two tracks of a walk: the faults of one
track follow one another, those of different tracks overlap. `seconds` is how long it lasts.
"""

import contextlib
import os
import re
import resource
import signal
import subprocess
import time

from history import Kind, now
from processes import children, descriptors, wait_until

TABLES = ["merchant_contract_terms", "merchant_orders", "merchant_instances",
          "merchant_contract_terms, merchant_orders"]
# Descriptors that a worker needs to start and to connect.
STARTS_WITH = 16
# How long the pool may take to stop, what a noisy machine adds to that, and how long a worker may take to be replaced.
STOPS_WITHIN = 2.0
STOP_SLACK = 0.5
REPLACED_WITHIN = 4.0


class Database:
    """Faults of PostgreSQL."""

    # May be in the log when such a fault was injected.
    LOGS = [r"warning: database: "]
    KINDS = {"lock": 4, "longlock": 2, "slow": 1, "restart": 3, "crash": 2, "away": 2, "pause": 2, "terminate": 3}

    def __init__(self, postgres, db, timeline, db_timeout, search_path="merchant"):
        self.postgres = postgres
        self.db = db
        self.search_path = search_path
        self.timeline = timeline
        self.db_timeout = db_timeout

    @staticmethod
    def draw(random, kind, db_timeout):
        """Parameters of a fault: everything that chance decides."""
        seconds = {"lock": random.uniform(0.05, 0.9) * db_timeout, "longlock": db_timeout + random.uniform(0.2, 1.5),
                   "slow": random.uniform(3, 5), "restart": random.choice([0, 0, 0.1, 0.5]), "crash": random.choice([0, 0.2]),
                   "away": random.uniform(2.5, 5), "pause": random.choice([0.1, 0.5, 1.5, db_timeout + 0.5]),
                   "terminate": 0}[kind]
        return {"seconds": seconds, "tables": random.choice(TABLES), "times": random.randint(1, 3)}

    def lock(self, seconds, tables, **_):
        """The tables are locked, as by a migration."""
        with self.timeline.span(Kind.TROUBLE), contextlib.suppress(RuntimeError, OSError):
            self._lock(seconds, tables)

    longlock = lock

    def _lock(self, seconds, tables):
        session = self.postgres.session(self.db, quiet=True)
        try:
            session.run(f"SET search_path = {self.search_path}")
            session.run(f"BEGIN; LOCK TABLE {tables}")
            time.sleep(seconds)
            session.run("ROLLBACK")
        finally:
            session.end()

    def slow(self, seconds, **_):
        """Each statement takes nearly as long as it may."""
        end = now() + seconds
        with self.timeline.span(Kind.TROUBLE), contextlib.suppress(RuntimeError, OSError):
            while now() < end:
                self._lock(0.85 * self.db_timeout, "merchant_instances")

    def restart(self, seconds, mode="fast", **_):
        with self.timeline.span(Kind.TROUBLE):
            self.postgres.stop(mode)
            time.sleep(seconds)
            self.postgres.start()

    away = restart

    def crash(self, seconds, **_):
        self.restart(seconds, "immediate")

    def pause(self, seconds, **_):
        """The machine of the database hangs: nothing is closed."""
        with self.timeline.span(Kind.TROUBLE):
            self.postgres.pause()
            try:
                time.sleep(seconds)
            finally:
                self.postgres.resume()

    def terminate(self, times, **_):
        for _ in range(times):
            with self.timeline.span(Kind.TROUBLE):
                self.postgres.end_sessions()
            time.sleep(0.05)


class Processes:
    """Faults of the pool and its workers."""

    KINDS = {"hup": 4, "stop": 3, "interrupt": 1, "quit": 1, "usr1": 1, "kill": 2, "massacre": 1, "short": 2, "freeze": 1}
    LOGS = {"kill": [r"error: worker \d+ killed by signal 9"], "massacre": [r"error: worker \d+ killed by signal 9"],
            "short": [r"warning: .*(descriptor|open files|accept)", r"warning: database: .*open files"]}

    def __init__(self, pool, workers, timeline):
        self.pool = pool
        self.workers = workers
        self.timeline = timeline

    @staticmethod
    def draw(random, kind, _db_timeout):
        seconds = {"stop": random.choice([0, 0, 0.3]), "massacre": random.uniform(1, 4), "short": random.uniform(0.5, 3),
                   "freeze": random.uniform(0.2, 1.5)}.get(kind, 0)
        return {"seconds": seconds, "victim": random.randrange(10), "room": random.randint(0, 8)}

    def serving(self):
        """The pids of the workers, once all are there."""
        wait_until(lambda: len(children(self.pool.pid)) == self.workers, REPLACED_WITHIN, "all workers")
        return children(self.pool.pid)

    def _victim(self, victim):
        return sorted(self.serving())[victim % self.workers]

    def hup(self, **_):
        before = self.serving()
        with self.timeline.span(Kind.LEAVING, Kind.STARTING):
            self.pool.send(signal.SIGHUP)
            try:
                wait_until(lambda: not set(before) & set(children(self.pool.pid)), REPLACED_WITHIN * self.workers, "new workers")
            except TimeoutError as late:
                self.timeline.violation(f"SIGHUP: {late}")

    def stop(self, seconds, number=signal.SIGTERM, **_):
        """The pool is stopped and started again."""
        with self.timeline.span(Kind.DOWN, Kind.LEAVING, Kind.STARTING):
            self.stop_pool(number)
            time.sleep(seconds)
            self.pool.start()

    def interrupt(self, **more):
        self.stop(number=signal.SIGINT, **more)

    def quit(self, **more):
        self.stop(number=signal.SIGQUIT, **more)

    def usr1(self, **more):
        self.stop(number=signal.SIGUSR1, **more)

    def stop_pool(self, number):
        begun = now()
        try:
            status = self.pool.stop(number, STOPS_WITHIN + STOP_SLACK)
            if status != 0:
                self.timeline.violation(f"the pool ended with status {status} at {number.name}")
        except (subprocess.TimeoutExpired, AssertionError) as trouble:
            self.timeline.violation(f"the pool did not stop at {number.name} in {now() - begun:.1f} s: {trouble}")
            with self.timeline.span(Kind.KILLED):
                self.pool.kill()

    def kill(self, victim, **_):
        self._kill(self._victim(victim))

    def _kill(self, pid):
        with self.timeline.span(Kind.KILLED, Kind.STARTING), contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.timeline.counts["workers killed"] += 1

    def massacre(self, seconds, **_):
        """Workers are killed as soon as they are there."""
        end = now() + seconds
        while now() < end:
            for pid in children(self.pool.pid):
                self._kill(pid)
            time.sleep(0.05)

    def short(self, seconds, victim, room, **_):
        """One worker may open but a few descriptors more."""
        pid = self._victim(victim)
        with self.timeline.span(Kind.SHORT), contextlib.suppress(ProcessLookupError, FileNotFoundError):
            limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(descriptors(pid), STARTS_WITH) + room, limit[1]))
            time.sleep(seconds)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
            # It tries to accept once a second.
            time.sleep(1.1)

    def freeze(self, seconds, victim, **_):
        pid = self._victim(victim)
        with self.timeline.span(Kind.FROZEN), contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)


def run(track, plan, begun, timeline, stopped):
    """Inject the planned faults of one track, in a thread that lives as long as the walk."""
    for at, kind, parameters in plan:
        if stopped.wait(max(0, begun + at - now())):
            return
        since = now()
        timeline.counts[f"fault: {kind}"] += 1
        timeline.note(f"{kind} begins, {' '.join(f'{name}={value}' for name, value in parameters.items())}")
        try:
            getattr(track, kind)(**parameters)
        except TimeoutError as late:
            timeline.violation(f"{kind}: {late}")
        timeline.note(f"{kind} is over after {now() - since:.3f} s")


def unexpected_lines(lines, allowed, secret, form):
    """The lines that a log must not have: in another form, with the secret in it, or a trouble that was not made."""
    for line in lines:
        match = form.fullmatch(line)
        trouble = match and match[1] in ("warning", "error")
        if not match or secret in line or (trouble and not any(re.search(pattern, line) for pattern in allowed)):
            yield line
