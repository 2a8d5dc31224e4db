# SPDX-License-Identifier: GPL-3.0-or-later
"""The database of the bench: shop.sql on top of the example shop, and the requests that it can answer."""

import hashlib
import pathlib
import random
import urllib.parse

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
        query = {"fulfillment_url": self.url}
        if timeout_ms is not None:
            query["timeout_ms"] = timeout_ms
        return f"/instances/{self.instance}/sessions/{self.session}?{urllib.parse.urlencode(query)}"

    def set_paid(self, paid):
        return (f"UPDATE merchant.merchant_contract_terms SET paid = {paid} WHERE order_id = '{self.order_id}'"
                f" AND merchant_serial = (SELECT merchant_serial FROM merchant.merchant_instances"
                f" WHERE merchant_id = '{self.instance}')")


class Shop:
    def __init__(self, postgres):
        self.postgres = postgres
        self.database = servers.make_shop(postgres, NAME)
        postgres.psql_file(HERE / "shop.sql", NAME)

    def session(self):
        return self.postgres.session(NAME)

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
