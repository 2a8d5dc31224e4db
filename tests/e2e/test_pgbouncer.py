# SPDX-License-Identifier: GPL-3.0-or-later
"""Behind PgBouncer, in each of its modes: right answers, and another client of the same pool notices nothing."""

import subprocess

import pytest

from client import assert_error, assert_order
from layouts import make_merchant
from merchant import new_session, new_url
from own_cluster import database  # noqa: F401
from processes import wait_until
from servers import PgBouncer, Postgres

LAYOUTS = {"2023": dict(), "2026": dict(naming="m-{serial}", serial=False)}
# Layout and mode. What the modes have in common need not be tried in each of them in both layouts.
CASES = [("2023", "session"), ("2023", "transaction"), ("2023", "statement"), ("2026", "transaction"), ("2026", "statement")]
TROUBLE = "database: (schema|.*trying again)"
# PgBouncer sets these for each client.
OF_CLIENTS = "('application_name', 'client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings')"


@pytest.fixture(scope="module")
def postgres():
    """A cluster for this file alone, which its tests stop."""
    with Postgres() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shops(postgres):
    """A merchant in each layout."""
    merchants = {}
    for name, layout in LAYOUTS.items():
        merchants[name] = make_merchant(postgres, f"shop-{name}", instances=("admin", "shop", "cafe"), **layout)
        postgres.psql('CREATE SCHEMA notes AUTHORIZATION "merchant-sessions"', merchants[name].db)
    return merchants


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    return request.param


@pytest.fixture
def shop(shops, case):
    return shops[case[0]]


@pytest.fixture
def bouncer(postgres, case):
    with PgBouncer(postgres, mode=case[1]) as pooler:
        yield pooler


@pytest.fixture
def pool(bouncer, shop, start_pool):
    """One worker."""
    return start_pool("--poll-interval", "100", "--db-timeout", "1000", database=bouncer.conninfo(shop.db))


# Answers

def test_each_answer(shop, pool):
    session, url = new_session(), new_url()
    assert_error(pool.fcgi.ask(session, url), 404, 2038)
    assert_error(pool.fcgi.ask(session, url, instance="nobody"), 404, 2000)
    order = shop.offer(session, url)
    assert_order(pool.fcgi.ask(session, url), 202, order)
    shop.claim(order)
    assert_order(pool.fcgi.ask(session, url), 202, order)
    for other in (dict(instance="cafe"), dict(instance=None)):
        assert_error(pool.fcgi.ask(session, url, **other), 404, 2038)
    shop.pay(order)
    assert_order(pool.fcgi.ask(session, url), 200, order)
    newer = shop.contract(session, url)
    assert_order(pool.fcgi.ask(session, url), 200, order)
    shop.pay(newer)
    assert_order(pool.fcgi.ask(session, url), 200, newer)
    assert pool.logged("info: database: through a pooler")


def test_payments_are_found_while_waiting(shop, pool):
    keys = [(new_session(), new_url(), instance) for instance in ("shop", "cafe", "shop")]
    orders = [shop.contract(*key) for key in keys]
    waiting = [pool.fcgi.later(session, url, instance, timeout_ms=20000) for session, url, instance in keys]
    last = pool.fcgi.later(new_session(), new_url(), timeout_ms=1500)
    for order, answer in zip(orders, waiting):
        shop.pay(order)
        assert_order(answer.result(5), 200, order)
    assert_error(last.result(5), 404, 2038)


@pytest.mark.parametrize("case", [("2026", "transaction")], ids="-".join)
def test_an_instance_that_comes_later(shop, pool):
    assert_error(pool.fcgi.ask(new_session(), new_url(), instance="late"), 404, 2000)
    shop.instance("late")
    shop.grant()
    wait_until(lambda: pool.fcgi.ask(new_session(), new_url(), instance="late").json["code"] == 2038, 12, "the instance")


# Other clients

def leftovers(client):
    """What the session has beside the client's own: changed settings and prepared statements."""
    settings = client.run(f"SELECT name, setting FROM pg_settings WHERE source = 'session' AND name NOT IN {OF_CLIENTS}")
    return settings + client.run("SELECT name FROM pg_prepared_statements WHERE name <> 'mine'")


def work(client):
    """What the program switches off, and what it forbids itself."""
    client.run("INSERT INTO notes.note SELECT n, (n * 7919 % 100)::text FROM generate_series(1, 100) n")
    plan = client.run("EXPLAIN SELECT * FROM notes.note ORDER BY text")
    assert "Seq Scan on note" in plan and "Sort" in plan
    assert float(plan.split("..")[1].split()[0]) < 1e6, plan
    assert client.run("SELECT count(*) FROM (SELECT * FROM notes.note ORDER BY text) AS sorted") == "100"
    client.run("DELETE FROM notes.note")
    assert leftovers(client) == ""


def servers(shop):
    return shop.sql("SELECT count(*) FROM pg_stat_activity WHERE usename = 'merchant-sessions' AND datname = current_database()")


def test_another_client_notices_nothing(shop, case, bouncer, pool):
    """The client uses the same server connection as the program: between its statements, or, in session mode, after it."""
    session, url = new_session(), new_url()
    order = shop.contract(session, url)
    waiting = pool.fcgi.later(session, url, timeout_ms=20000)
    assert servers(shop) == "1"
    shared = case[1] != "session"
    if not shared:
        shop.pay(order)
        assert_order(waiting.result(5), 200, order)
        pool.stop()
    with bouncer.session(shop.db) as client:
        client.run("CREATE TABLE IF NOT EXISTS notes.note (n bigint, text text)")
        client.run("PREPARE mine AS SELECT 'mine'")
        for _ in range(10):
            work(client)
            assert client.run("EXECUTE mine") == "mine"
            if shared:
                assert_order(pool.fcgi.ask(session, url), 202, order)
        client.run("DEALLOCATE mine")
        assert servers(shop) == "1"
    if shared:
        shop.pay(order)
        assert_order(waiting.result(5), 200, order)


@pytest.mark.parametrize("case", CASES[1:], ids="-".join)
def test_another_client_leaves_its_settings_behind(shop, bouncer, pool):
    """The lookups have their own."""
    session, url = new_session(), new_url()
    order = shop.contract(session, url, paid=True)
    with bouncer.session(shop.db) as client:
        client.run("SET search_path = notes")
        client.run("SET statement_timeout = 1")
        client.run("SET default_transaction_read_only = on")
        for _ in range(3):
            assert_order(pool.fcgi.ask(session, url), 200, order)
        client.run("RESET ALL")


@pytest.mark.parametrize("case", [("2023", "transaction"), ("2026", "statement")], ids="-".join)
def test_several_servers(postgres, shop, case, start_pool):
    """Lookups run in any of them, also those of several workers."""
    with PgBouncer(postgres, case[1], servers=3) as bouncer:
        pool = start_pool(workers=3, database=bouncer.conninfo(shop.db))
        keys = [(new_session(), new_url()) for _ in range(10)]
        orders = [shop.contract(*key) for key in keys]
        waiting = [pool.fcgi.later(*key, timeout_ms=20000) for key in keys]
        for order in orders:
            shop.pay(order)
        for order, answer in zip(orders, waiting):
            assert_order(answer.result(5), 200, order)
        with bouncer.session(shop.db) as client:
            assert leftovers(client) == ""
        pool.stop()


# Restarts

RESTARTED = CASES[:4]


@pytest.fixture
def waiting(shop, pool):
    """A request that waits while the connections are in trouble."""
    pool.expect(TROUBLE)
    session, url = new_session(), new_url()
    order = shop.contract(session, url)
    answer = pool.fcgi.later(session, url, timeout_ms=20000)
    pool.wait_for_waiting(1)
    yield answer
    shop.pay(order)
    assert_order(answer.result(5), 200, order)


def assert_served_again(pool, shop):
    session, url = new_session(), new_url()
    order = shop.contract(session, url, paid=True)
    wait_until(lambda: pool.fcgi.ask(session, url).status != 500, 8, "an answer again")
    assert_order(pool.fcgi.ask(session, url), 200, order)


@pytest.mark.parametrize("case", RESTARTED, ids="-".join)
def test_pgbouncer_is_restarted(bouncer, shop, pool, waiting):
    bouncer.stop()
    assert_error(pool.fcgi.ask(new_session(), new_url()), 500, 53)
    bouncer.start()
    assert_served_again(pool, shop)
    assert not waiting.done()


@pytest.mark.parametrize("case", RESTARTED, ids="-".join)
def test_the_server_is_restarted(postgres, shop, pool, waiting):
    postgres.stop()
    assert_error(pool.fcgi.ask(new_session(), new_url()), 500, 53)
    postgres.start()
    assert_served_again(pool, shop)
    assert not waiting.done()


@pytest.mark.parametrize("case", RESTARTED, ids="-".join)
def test_the_server_hangs(postgres, shop, pool, waiting):
    postgres.pause()
    try:
        assert_error(pool.fcgi.ask(new_session(), new_url()), 500, 53)
    finally:
        postgres.resume()
    assert_served_again(pool, shop)
    assert not waiting.done()


@pytest.mark.parametrize("case", RESTARTED, ids="-".join)
def test_a_statement_that_takes_too_long_is_cancelled(postgres, shop, pool, waiting):
    """Its own statement_timeout ends it: it must not keep the connection that others need."""
    with postgres.session(shop.db) as other:
        other.run(f"SET search_path = {shop.search_path}; BEGIN; LOCK TABLE merchant_contract_terms")
        assert_error(pool.fcgi.ask(new_session(), new_url()), 500, 53)
        wait_until(lambda: shop.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == "0", 3,
                   "the end of the statement")
    assert_served_again(pool, shop)


# --check

def test_check(program, shop, bouncer):
    done = subprocess.run([program, "--check", "--database", bouncer.conninfo(shop.db)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    for line in ("note    pooler: through a pooler: ", "ok      lookup: works\n", "ok      claimed orders: found by an index\n",
                 "note    changes: cannot be detected through a pooler"):
        assert line in done.stdout, done.stdout
    with bouncer.session(shop.db) as client:
        assert leftovers(client) == ""
