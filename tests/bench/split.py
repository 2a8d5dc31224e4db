# SPDX-License-Identifier: GPL-3.0-or-later
"""Paid lookups where each instance has a schema of its own, over 1, 10 and 300 of them, beside the plain layout."""

import hashlib
import http.client
import pathlib
import random
import tempfile
import time
import urllib.parse

import candidates
import plain
import processes
import servers

HERE = pathlib.Path(__file__).resolve().parent
NAME = "split"
INSTANCES = [1, 10, 300]
CONTRACTS = 1000
PATHS = 20_000
# Until each worker has prepared the statements of all instances.
WARM_UP = 3


def make(postgres):
    """The database of split.sql; return the conninfo for the program."""
    postgres.psql(f"CREATE DATABASE {NAME}")
    postgres.psql_file(HERE / "split.sql", NAME)
    postgres.psql_file(servers.ROOT / "sql/role.sql", NAME)
    return postgres.conninfo(NAME)


def _path(instance, n):
    session = hashlib.md5(f"session {instance} {n}".encode()).hexdigest()
    url = f"https://shop-{instance}.example/articles/{n}"
    return f"/instances/shop-{instance}/sessions/{session}?{urllib.parse.urlencode({'fulfillment_url': url})}"


def _paths(instances):
    """Of paid contracts of the first instances."""
    choose = random.Random(instances)
    numbers = [n for n in range(1, CONTRACTS) if n % 5]
    return [_path(choose.randint(1, instances), choose.choice(numbers)) for _ in range(PATHS)]


def measure(build, database, conninfo, paths, seconds):
    """One round: instances → figures; 0 is the plain layout."""
    figures = {0: _measure(build, database.postgres, database.database, paths, seconds)}
    with tempfile.TemporaryDirectory() as directory:
        for count in INSTANCES:
            file = pathlib.Path(directory) / "paths"
            file.write_text("".join(path + "\n" for path in _paths(count)))
            figures[count] = _measure(build, database.postgres, conninfo, file, seconds)
    return figures


def _measure(build, postgres, conninfo, paths, seconds):
    with candidates.program(build, conninfo) as pool, candidates.web_server(pool.socket, keep=True) as web:
        _check(web.port, paths.read_text().splitlines()[0])
        plain.wrk(web.port, paths, WARM_UP)
        cpu = processes.Cpu(program=pool, database=postgres)
        result = plain.wrk(web.port, paths, seconds)
        figures = plain.figures(result, cpu.seconds())
        return {**figures, "worker": max(map(processes.resident_bytes, pool.workers())),
                "backend": max(map(processes.own_bytes, _backends(postgres)))}


def _backends(postgres):
    return [int(pid) for pid in postgres.psql(
        f"SELECT pid FROM pg_stat_activity WHERE usename = '{servers.ROLE}'").split()]


def _check(port, path):
    """Until the program serves, for ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path)
        status = connection.getresponse().status
        connection.close()
        if status == 200:
            return
        time.sleep(0.1)
    raise RuntimeError(f"a paid session was answered with {status}")
