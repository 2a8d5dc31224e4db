# SPDX-License-Identifier: GPL-3.0-or-later
"""The database of the bench, shop.sql and visitors.sql on top of the example shop, and the requests that it answers."""

import contextlib
import hashlib
import itertools
import pathlib
import random
import subprocess
import tempfile
import urllib.parse

import processes
import servers

HERE = pathlib.Path(__file__).resolve().parent
NAME = "bench"
CONTRACTS = 500_000
UNPAID_EVERY = 5


class Contract:
    """Contract number `n`, as shop.sql makes it."""

    def __init__(self, n):
        self.order_id = f"order-{n}"
        self.instance = f"shop-{n % 8 + 1}"
        self.session = hashlib.md5(f"session {n}".encode()).hexdigest()
        self.url = f"https://{self.instance}.example/articles/{n % 1000}"

    def path(self, timeout_ms=None):
        return _path(self, timeout_ms)

    def set_paid(self, paid):
        return (f"UPDATE merchant.merchant_contract_terms SET paid = {paid} WHERE order_id = '{self.order_id}'"
                f" AND merchant_serial = (SELECT merchant_serial FROM merchant.merchant_instances"
                f" WHERE merchant_id = '{self.instance}')")


class Visitor:
    """Visitor number `n` of visitors.sql, who has no order yet."""

    def __init__(self, n):
        self.n = n
        self.instance = f"shop-{n % 8 + 1}"
        self.session = hashlib.md5(f"visitor {n}".encode()).hexdigest()
        self.url = f"https://{self.instance}.example/articles/{n % 1000}"

    def path(self, timeout_ms=None):
        return _path(self, timeout_ms)

    def claims(self):
        return f"SELECT bench.add_contract({self.n}, false)"

    def is_offered(self):
        return f"SELECT bench.add_offer({self.n})"

    def pays(self):
        return f"SELECT bench.pay({self.n})"

    def pays_without_claim(self):
        return f"SELECT bench.add_contract({self.n}, true)"

    def pays_offer(self):
        return f"SELECT bench.pay_offer({self.n})"


def _path(who, timeout_ms):
    query = {"fulfillment_url": who.url}
    if timeout_ms is not None:
        query["timeout_ms"] = timeout_ms
    return f"/instances/{who.instance}/sessions/{who.session}?{urllib.parse.urlencode(query)}"


class Shop:
    def __init__(self, postgres):
        self.postgres = postgres
        self.database = servers.make_shop(postgres, NAME)
        self._visitor_numbers = itertools.count(1)
        postgres.psql_file(HERE / "shop.sql", NAME)
        postgres.psql_file(HERE / "visitors.sql", NAME)

    def session(self):
        return self.postgres.session(NAME)

    def distant(self, port):
        """The conninfo for the program, by another port of 127.0.0.1."""
        return f"host=127.0.0.1 port={port} dbname={NAME} user={servers.ROLE}"

    def visitors(self, count):
        """So many visitors that were not handed out before."""
        return [Visitor(n) for n in itertools.islice(self._visitor_numbers, count)]

    def backends(self):
        """The pids of the program's backends."""
        return [int(pid) for pid in self.postgres.psql(
            f"SELECT pid FROM pg_stat_activity WHERE usename = '{servers.ROLE}' AND datname = '{NAME}'").split()]

    def merchant_serials(self):
        """Instance → its number in the database."""
        rows = self.postgres.psql("SELECT merchant_id, merchant_serial FROM merchant.merchant_instances", NAME)
        return dict(row.split("|") for row in rows.splitlines())

    @contextlib.contextmanager
    def disturbed(self, per_second):
        """Unrelated commits, `per_second` of them in a second, at random times; yields a function that tells how many
        there have been."""
        with tempfile.TemporaryDirectory() as directory:
            script = pathlib.Path(directory) / "script.sql"
            script.write_text("SELECT bench.disturb();\n")
            writer = processes.start(
                ["pgbench", "-n", "-M", "prepared", "-c", 2, "-R", per_second, "-T", 3600, "-f", script,
                 self.postgres.conninfo(NAME, user=self.postgres.SUPERUSER)],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            before = self._disturbances()
            try:
                yield lambda: self._disturbances() - before
                if writer.poll() is not None:
                    raise RuntimeError("the unrelated commits have ended early")
            finally:
                writer.kill()
                writer.wait()

    def _disturbances(self):
        return int(self.postgres.psql("SELECT last_value FROM bench.disturbances", NAME))

    def transactions(self):
        """Statements so far: the program runs each in a transaction of its own."""
        return int(self.postgres.psql(
            f"SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = '{NAME}'"))


def paid(count):
    """Paid contracts from all over the table, always the same ones."""
    numbers = range(1, CONTRACTS, UNPAID_EVERY)
    return [Contract(n) for n in random.Random(1).sample(numbers, count)]


def unpaid(count):
    numbers = range(UNPAID_EVERY, CONTRACTS, UNPAID_EVERY)
    return [Contract(n) for n in random.Random(2).sample(numbers, count)]


# As lookup-one.sql, with paid contracts drawn by pgbench.
PGBENCH = r"""
\set n random(0, 99999) * 5 + 1
\set shop :n % 8 + 1
\set article :n % 1000
"""


def pgbench_script():
    statement = (HERE / "lookup-one.sql").read_text()
    for parameter, expression in (("$1", "('shop-' || :shop)"),
                                  ("$2", "('https://shop-' || :shop || '.example/articles/' || :article)"),
                                  ("$3", "md5('session ' || :n)")):
        statement = statement.replace(parameter, expression)
    return PGBENCH + statement.rstrip() + ";\n"
