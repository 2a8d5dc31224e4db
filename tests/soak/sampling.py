# SPDX-License-Identifier: GPL-3.0-or-later
"""What is sampled every few seconds, as a row of a CSV: memory and descriptors of each process, the pools' own metrics,
the database's connections and their memory, and latencies. A value that cannot be had at the moment is left empty.
"""

import contextlib
import csv
import os
import pathlib
import re

import fastcgi
import metrics
import processes
from load import percentile
from servers import ROLE

KIB = 1024
STATUSES = (200, 202, 400, 404, 500)


def scrape(pool):
    """The metrics of a pool, from its socket."""
    with fastcgi.Connection(pool.connect_to, timeout=3) as connection:
        connection.send(fastcgi.request({"REQUEST_METHOD": "GET", "MERCHANT_SESSIONS_METRICS": "1"}))
        reply = connection.reply()
    if reply is None:
        raise OSError("closed without the metrics")
    return metrics.Samples(reply.body.decode())


def memory(pid):
    """RSS, PSS and what it shares with no other process, in KiB. KeyError if the process is ending."""
    rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = dict(re.findall(r"^(Rss|Pss): +(\d+) kB$", rollup, re.MULTILINE))
    return {"rss": int(sizes["Rss"]), "pss": int(sizes["Pss"]), "own": processes.own_bytes(pid) // KIB}


class PoolSampler:
    """Columns that begin with the name of the pool."""

    def __init__(self, name, pool, workers):
        self.name = name
        self.pool = pool
        self.workers = workers

    def row(self):
        values = {}
        values |= self._process("supervisor", self.pool.pid)
        pids = sorted(processes.children(self.pool.pid))
        # While one is replaced there may be one more, or one less.
        if len(pids) == self.workers:
            for number, pid in enumerate(pids, 1):
                values |= self._process(f"worker{number}", pid)
        with contextlib.suppress(OSError, AssertionError):
            values |= self._metrics(scrape(self.pool))
        opened = [values.get(f"worker{n}_descriptors") for n in range(1, self.workers + 1)]
        if None not in opened and "connections" in values:
            values["descriptors_of_no_client"] = sum(opened) - values["connections"]
        return {f"{self.name}_{name}": value for name, value in values.items()}

    @staticmethod
    def _process(name, pid):
        values = {}
        with contextlib.suppress(OSError, LookupError):
            values = memory(pid) | {"descriptors": processes.descriptors(pid)}
        return {f"{name}_{what}": value for what, value in values.items()}

    @staticmethod
    def _metrics(samples):
        answers = samples.answers()
        values = {f"answers_{status}": sum(count for (each, _), count in answers.items() if each == status)
                  for status in STATUSES}
        values["answers"] = sum(answers.values())
        for name, sample in {"waiting": "waiting", "connections": "connections", "database_up": "database_up",
                             "reconnects": "database_reconnects_total", "unanswered": "unanswered_total",
                             "lookups": 'lookups_total{question="everything"}',
                             "polls": 'lookups_total{question="payment"}',
                             "batches": 'batch_seconds_count{question="everything"}',
                             "poll_batches": 'batch_seconds_count{question="payment"}',
                             "died": 'worker_restarts_total{reason="died"}',
                             "replaced": 'worker_restarts_total{reason="replaced"}'}.items():
            values[name] = int(samples[sample])
        return values


class DatabaseSampler:
    """The backends that serve the pools. Their prepared statements are counted in the memory contexts that a backend
    writes into PostgreSQL's log when a superuser asks it to: each has a CachedPlanSource."""

    ASKED_EVERY = 6

    def __init__(self, postgres):
        self.postgres = postgres
        self._rows = 0
        self._log_end = 0

    def row(self):
        self._rows += 1
        values = {}
        with contextlib.suppress(RuntimeError, OSError, LookupError):
            values = self._backends()
        return {f"database_{name}": value for name, value in values.items()}

    def _backends(self):
        pids = [int(pid) for pid in self.postgres.psql(
            f"SELECT pid FROM pg_stat_activity WHERE usename = '{ROLE}' ORDER BY backend_start, pid").split()]
        values = {"connections": len(pids)}
        if pids:
            sizes = [memory(pid) for pid in pids]
            own = [size["own"] for size in sizes]
            values |= {"backend_own_max": max(own), "backend_own_sum": sum(own),
                       "backend_pss_sum": sum(size["pss"] for size in sizes)}
            values |= self._statements(pids)
        return values

    def _statements(self, pids):
        """Those that the log has of the last time, and ask again."""
        counted = re.findall(r"^.*\[(\d+)\].*CachedPlanSource: ", self._new_log(), re.MULTILINE)
        values = {"prepared_max": max((counted.count(pid) for pid in set(counted)), default=None)}
        if self._rows % self.ASKED_EVERY == 1:
            self.postgres.psql("SELECT " + ", ".join(f"pg_log_backend_memory_contexts({pid})" for pid in pids))
        return values

    def _new_log(self):
        """What the log has got since the last call."""
        with open(self.postgres.log, encoding="utf-8", errors="replace") as log:
            log.seek(self._log_end)
            text = log.read()
            self._log_end = log.tell()
        return text


class Table:
    """The CSV. Each row is in the file when `add` returns."""

    def __init__(self, path):
        self.rows = []
        self._file = open(path, "w", newline="", encoding="utf-8")
        self._writer = None

    def add(self, row):
        """The first row has to have all columns; a value may be None."""
        if not self._writer:
            self._writer = csv.DictWriter(self._file, row)
            self._writer.writeheader()
        self._writer.writerow(row)
        self._file.flush()
        self.rows.append(row)

    def close(self):
        self._file.close()


def latency_row(quick, payments):
    row = {f"quick_p{n}": percentile(quick, n) for n in (50, 99)}
    row["quick_max"] = round(1000 * max(quick), 2) if quick else None
    row |= {f"payment_p{n}": percentile(payments, n) for n in (50, 99)}
    row["payment_max"] = round(1000 * max(payments), 2) if payments else None
    return row


def own_memory():
    """Of this driver, in KiB: what it keeps is a leak too."""
    return processes.own_bytes(os.getpid()) // KIB
