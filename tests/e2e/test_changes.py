# SPDX-License-Identifier: GPL-3.0-or-later
"""The check for changes of fcgi/lookup.c, driven by lookup_probe.c: no commit is missed, a quiet database is noticed."""

import concurrent.futures
import itertools
import random
import subprocess
import threading
import time

import pytest

from layouts import make_merchant, put_view_before_contracts
from merchant import new_session, new_url
from own_cluster import database  # noqa: F401
from processes import start, wait_until
from servers import PgBouncer, Postgres, Standby, read_statement

SECONDS = 4
SLACK = 1.0

TERMINATE = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE usename = 'merchant-sessions' AND query LIKE '%pg_current_snapshot%'"""

_number = itertools.count()


@pytest.fixture(scope="module")
def postgres():
    """A cluster of its own, with two-phase commits: snapshots are those of a whole cluster."""
    with Postgres(max_prepared_transactions=20) as cluster:
        yield cluster


def new_merchant(postgres, **layout):
    return make_merchant(postgres, f"changes{next(_number)}", instances=("shop",), **layout)


class Probe:
    """lookup-probe with a contract for each key."""

    def __init__(self, path, conninfo, mode, keys, seconds):
        self.process = start([path, conninfo, seconds, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process.stdin.write("".join(f"shop\t{url}\t{session}\n" for session, url in keys))
        self.process.stdin.close()
        self.answers = []
        self.found = {}
        self.numbers = {}
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdout.close()

    def _read(self):
        for line in self.process.stdout:
            words = line.split()
            if words[0] == "paid":
                self.found[words[1]] = time.monotonic()
            elif words[0] == "answer":
                self.answers.append((int(words[1]), int(words[2]), words[3]))
            else:
                self.numbers = dict(zip(words[::2], map(int, words[1::2])))

    def result(self):
        """Return when each order was found to be paid, and the numbers in the last line of the output."""
        assert self.process.wait() == 0
        self.reader.join()
        return self.found, self.numbers


def new_keys(count):
    return [(new_session(), new_url()) for _ in range(count)]


# Ways to commit a statement

WAYS = {
    "plain": "{sql}",
    "subtransaction": "BEGIN; SAVEPOINT a; {sql}; RELEASE a; COMMIT",
    "after rollbacks": "BEGIN; {sql}; ROLLBACK; BEGIN; SAVEPOINT a; {sql}; ROLLBACK TO a; {sql}; COMMIT",
    "long": "BEGIN; SELECT txid_current(); SELECT pg_sleep(0.2); {sql}; SELECT pg_sleep(0.2); COMMIT",
    "two-phase": "BEGIN; {sql}; PREPARE TRANSACTION '{name}'; SELECT pg_sleep(0.1); COMMIT PREPARED '{name}'",
}


def commit(merchant, way, sql):
    merchant.sql(WAYS[way].format(sql=sql, name=f"transaction {next(_number)}"))


def set_paid(order, paid=True):
    return f"UPDATE merchant_contract_terms SET paid = {paid} WHERE order_id = '{order}'"


def pay_in_every_way(merchant, orders):
    """Pay several at a time. Returns the time at which each COMMIT had returned."""
    def pay(order, way):
        time.sleep(random.uniform(0, 1))
        commit(merchant, way, set_paid(order))
        return order, time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(6) as executor:
        return dict(executor.map(pay, orders, itertools.cycle(WAYS)))


def assert_found(found, committed):
    assert set(found) == set(committed)
    late = {order: found[order] - committed[order] for order in found if found[order] - committed[order] > SLACK}
    assert not late


# Each instance has a schema of its own, or not.
EITHER_LAYOUT = pytest.mark.parametrize("layout", [dict(), dict(naming="m{serial}", serial=False)],
                                        ids=["one schema", "a schema each"])


# The number of the database's state

def write_for(merchant, orders, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        commit(merchant, random.choice(list(WAYS)), set_paid(random.choice(orders), random.choice([True, False])))


@EITHER_LAYOUT
def test_equal_numbers_mean_equal_rows(postgres, lookup_probe, layout):
    merchant = new_merchant(postgres, **layout)
    keys = new_keys(8)
    orders = [merchant.contract(*key) for key in keys]
    with Probe(lookup_probe, postgres.conninfo(merchant.db), "same", keys, SECONDS) as probe:
        with concurrent.futures.ThreadPoolExecutor(4) as executor:
            for writer in [executor.submit(write_for, merchant, orders, SECONDS) for _ in range(4)]:
                writer.result()
        _, numbers = probe.result()
    assert numbers["differences"] == 0
    assert numbers["versions"] > 10
    assert numbers["batches"] > numbers["versions"]


def quiet_versions(server, lookup_probe, merchant):
    with Probe(lookup_probe, server.conninfo(merchant.db), "same", new_keys(1), 2) as probe:
        return probe.result()[1]["versions"]


@pytest.mark.parametrize("layout", [dict(), dict(offers_have_session=False), dict(naming="m{serial}")],
                         ids=["2023", "2022", "2026"])
def test_a_quiet_database_keeps_its_number(postgres, lookup_probe, layout):
    merchant = new_merchant(postgres, **layout)
    assert quiet_versions(postgres, lookup_probe, merchant) == 1


def test_a_reconnect_has_a_new_number(postgres, lookup_probe):
    merchant = new_merchant(postgres)
    with Probe(lookup_probe, postgres.conninfo(merchant.db), "same", new_keys(1), 3) as probe:
        wait_until(lambda: merchant.sql(TERMINATE) == "t", what="a connection to terminate")
        assert probe.result()[1]["versions"] == 2


# Untracked tables

def make_foreign(postgres, partition):
    """A database whose merchant_contract_terms is that of another database, or has it as a partition."""
    far = new_merchant(postgres)
    near = new_merchant(postgres)
    near.sql(f"""
        DROP TABLE merchant_contract_terms;
        CREATE EXTENSION postgres_fdw;
        CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw
            OPTIONS (host '{postgres.directory}', port '{postgres.port}', dbname '{far.db}');
        CREATE USER MAPPING FOR PUBLIC SERVER far OPTIONS (user 'postgres', password_required 'false');
        IMPORT FOREIGN SCHEMA merchant LIMIT TO (merchant_contract_terms) FROM SERVER far INTO merchant""")
    if partition:
        near.sql("""
            ALTER TABLE merchant_contract_terms RENAME TO far_contracts;
            CREATE TABLE merchant_contract_terms (LIKE far_contracts) PARTITION BY LIST (merchant_serial);
            CREATE TABLE more_contracts PARTITION OF merchant_contract_terms DEFAULT PARTITION BY LIST (paid);
            ALTER TABLE more_contracts ATTACH PARTITION far_contracts DEFAULT""")
    near.sql('GRANT SELECT ON merchant_contract_terms TO "merchant-sessions"')
    return near, far


@EITHER_LAYOUT
def test_a_view_is_not_tracked(postgres, lookup_probe, layout):
    merchant = new_merchant(postgres, **layout)
    put_view_before_contracts(merchant)
    assert 4 <= quiet_versions(postgres, lookup_probe, merchant) <= 10


@EITHER_LAYOUT
def test_nothing_is_tracked_through_a_pooler(postgres, lookup_probe, layout):
    """The server that answers a check may know more than the server that answers the lookup."""
    merchant = new_merchant(postgres, **layout)
    with PgBouncer(postgres, "transaction") as bouncer:
        assert 4 <= quiet_versions(bouncer, lookup_probe, merchant) <= 10


@pytest.mark.parametrize("partition", [False, True])
def test_a_foreign_table_is_not_tracked(postgres, lookup_probe, partition):
    near, far = make_foreign(postgres, partition)
    assert 4 <= quiet_versions(postgres, lookup_probe, near) <= 10
    keys = new_keys(5)
    orders = [far.contract(*key) for key in keys]
    with Probe(lookup_probe, postgres.conninfo(near.db), "wait", keys, 20) as probe:
        committed = pay_in_every_way(far, orders)
        assert_found(probe.result()[0], committed)


# What a poll tells

UNKNOWN, UNPAID, PAID = 1, 2, 3


@EITHER_LAYOUT
@pytest.mark.parametrize("offers_have_session", [True, False])
def test_a_poll_tells_of_contracts(postgres, lookup_probe, offers_have_session, layout):
    """A poll does not look at unclaimed orders. Of several contracts a paid one wins, then the newest does."""
    merchant = new_merchant(postgres, offers_have_session=offers_have_session, **layout)
    unknown, offered, claimed, paid, both, newest = keys = new_keys(6)
    merchant.offer(*offered)
    orders = [merchant.contract(*claimed), merchant.contract(*paid, paid=True)]
    orders.append(merchant.contract(*both, paid=True, age=10))
    merchant.contract(*both)
    merchant.contract(*newest, age=10)
    orders.append(merchant.contract(*newest))
    with Probe(lookup_probe, postgres.conninfo(merchant.db), "same", keys, 1) as probe:
        probe.result()
    assert probe.answers == [(UNKNOWN, 0, "-"), (UNKNOWN, 0, "-"), (UNPAID, 1, orders[0]), (PAID, 0, orders[1]),
                             (PAID, 0, orders[2]), (UNPAID, 1, orders[3])]


# No commit is missed

def test_every_commit_is_noticed(postgres, lookup_probe):
    merchant = new_merchant(postgres)
    keys = new_keys(40)
    orders = [merchant.contract(*key) for key in keys]
    with Probe(lookup_probe, postgres.conninfo(merchant.db), "wait", keys, 20) as probe:
        committed = pay_in_every_way(merchant, orders)
        found, numbers = probe.result()
    assert_found(found, committed)
    assert numbers["batches"] <= numbers["versions"]


@EITHER_LAYOUT
def test_a_reconnect_in_the_middle(postgres, lookup_probe, layout):
    """A commit between two connections is found, although the new connection has seen no change."""
    merchant = new_merchant(postgres, **layout)
    keys = new_keys(20)
    orders = [merchant.contract(*key) for key in keys]
    with Probe(lookup_probe, postgres.conninfo(merchant.db), "wait", keys, 20) as probe:
        committed = pay_in_every_way(merchant, orders[:10])
        merchant.sql(f"{set_paid(orders[10])}; {TERMINATE}")
        committed[orders[10]] = time.monotonic()
        committed |= pay_in_every_way(merchant, orders[11:])
        assert_found(probe.result()[0], committed)


def test_a_standby_and_its_promotion(postgres, lookup_probe):
    merchant = new_merchant(postgres)
    keys = new_keys(30)
    orders = [merchant.contract(*key) for key in keys]
    with Standby(postgres) as standby:
        with Probe(lookup_probe, standby.conninfo(merchant.db), "same", keys, 2) as probe:
            assert probe.result()[1]["versions"] <= 3
        with Probe(lookup_probe, standby.conninfo(merchant.db), "wait", keys, 30) as probe:
            committed = pay_in_every_way(merchant, orders[:20])
            assert standby.psql(read_statement("changes.sql")).startswith("replayed ")
            standby.promote()
            assert standby.psql(read_statement("changes.sql")).startswith("snapshot ")
            merchant.postgres = standby
            committed |= pay_in_every_way(merchant, orders[20:])
            assert_found(probe.result()[0], committed)


# The same through the program

def start_waiting(pool, keys):
    """Requests that wait, and when each was answered, by order."""
    answered = {}

    def note(future):
        answered[future.result().json.get("order_id")] = time.monotonic()

    for key in keys:
        pool.fcgi.later(*key, timeout_ms=30000).add_done_callback(note)
    return answered


def assert_answered(answered, committed):
    wait_until(lambda: len(answered) == len(committed), 5, "all answers")
    assert_found(answered, committed)


@pytest.mark.parametrize("kind", ["table", "view", "foreign table", "foreign partition"])
def test_waiting_requests_are_answered(postgres, start_pool, kind):
    if kind.startswith("foreign"):
        merchant, writer = make_foreign(postgres, kind == "foreign partition")
    else:
        merchant = writer = new_merchant(postgres)
    if kind == "view":
        put_view_before_contracts(merchant)
    pool = start_pool(database=postgres.conninfo(merchant.db))
    pool.expect("no index for the lookup")
    keys = new_keys(10)
    orders = [writer.contract(*key) for key in keys]
    answered = start_waiting(pool, keys)
    assert_answered(answered, pay_in_every_way(writer, orders))


def test_waiting_on_a_standby_through_its_promotion(postgres, start_pool):
    merchant = new_merchant(postgres)
    keys = new_keys(20)
    orders = [merchant.contract(*key) for key in keys]
    with Standby(postgres) as standby:
        pool = start_pool(database=standby.conninfo(merchant.db))
        answered = start_waiting(pool, keys)
        committed = pay_in_every_way(merchant, orders[:10])
        standby.promote()
        merchant.postgres = standby
        committed |= pay_in_every_way(merchant, orders[10:])
        assert_answered(answered, committed)
        assert pool.stop() == 0


# Other versions of PostgreSQL

def test_the_text_of_older_versions(postgres):
    """The function that PostgreSQL had before version 13 is there in later ones."""
    text = postgres.psql(read_statement("changes-before-13.sql"))
    assert text == postgres.psql(read_statement("changes.sql")) and text.startswith("snapshot ")
