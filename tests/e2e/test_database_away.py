# SPDX-License-Identifier: GPL-3.0-or-later
"""A database that is stopped, hangs, throws the program out, or does not let it read."""

import time

import pytest

import proxy
from client import assert_error, assert_order
from layouts import LAYOUTS, ddl, make_merchant
from merchant import Merchant, new_session, new_url
from own_cluster import database, merchant  # noqa: F401
from processes import wait_until
from servers import ROLE, ROOT, Postgres, make_shop

DB_TIMEOUT = 500
SLACK = 1.0
# A connection that lasted this many seconds has worked.
PROVEN_AGE = 10
OPTIONS = ("--db-timeout", str(DB_TIMEOUT), "--poll-interval", "100")
TROUBLE = "database|connect|server|terminat|cancel|statement"


@pytest.fixture(scope="module")
def postgres():
    """A cluster for this file alone, which its tests stop."""
    with Postgres() as cluster:
        yield cluster


@pytest.fixture
def pool(postgres, start_pool):
    """One worker with a database timeout of half a second. The database runs again after each test."""
    pool = start_pool(*OPTIONS)
    pool.expect(TROUBLE)
    yield pool
    postgres.resume()
    if not postgres.running():
        postgres.start()


def wait_until_served(pool, session=None, url=None):
    wait_until(lambda: pool.fcgi.ask(session or new_session(), url or new_url()).status != 500, 8, "an answer again")


def assert_fails(pool, **options):
    answer = pool.fcgi.ask(new_session(), new_url(), **options)
    assert_error(answer, 500, 53)
    return answer


# Stopped

def test_a_new_request_waits_a_little_and_fails(postgres, pool):
    wait_until_served(pool)
    postgres.stop()
    for _ in range(3):
        assert DB_TIMEOUT / 1000 - 0.1 <= assert_fails(pool).seconds < DB_TIMEOUT / 1000 + SLACK
    postgres.start()
    wait_until_served(pool)


def test_a_new_request_lives_through_a_restart(postgres, start_pool, merchant):
    pool = start_pool("--db-timeout", "10000")
    pool.expect(TROUBLE)
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    wait_until_served(pool)
    postgres.stop()
    waiting = pool.fcgi.later(session, url)
    time.sleep(0.5)
    postgres.start()
    assert_order(waiting.result(), 200, order)


def test_answers_that_need_no_database(postgres, pool):
    postgres.stop()
    assert_error(pool.fcgi.get("/sessions/s3cr3t"), 400, 25, "fulfillment_url")
    assert_error(pool.fcgi.get("/orders"), 404, 21)
    assert pool.fcgi.get("/sessions/s3cr3t", method="OPTIONS").status == 204


def test_started_before_the_database(postgres, start_pool, merchant):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    postgres.stop()
    pool = start_pool(*OPTIONS, workers=2)
    pool.expect(TROUBLE)
    assert_fails(pool)
    postgres.start()
    wait_until_served(pool, session, url)
    assert_order(pool.fcgi.ask(session, url), 200, order)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_those_who_wait_live_through_a_restart(postgres, pool, merchant, mode):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    waiting = pool.fcgi.later(session, url, timeout_ms=20000)
    unknown = pool.fcgi.later(new_session(), new_url(), timeout_ms=4000)
    postgres.stop(mode)
    time.sleep(3 * DB_TIMEOUT / 1000)
    assert not waiting.done()
    postgres.start()
    merchant.pay(order)
    assert_order(waiting.result(), 200, order)
    answer = unknown.result()
    assert_error(answer, 404, 2038)
    assert answer.seconds >= 4


def test_still_away_at_the_deadline(postgres, pool):
    waiting = pool.fcgi.later(new_session(), new_url(), timeout_ms=1500)
    postgres.stop()
    answer = waiting.result()
    assert_error(answer, 500, 53)
    assert 1.5 <= answer.seconds < 1.5 + DB_TIMEOUT / 1000 + SLACK


def test_a_new_request_that_would_wait(postgres, pool):
    """The request comes after the database has gone away."""
    postgres.stop()
    wait_until(lambda: pool.logged("warning: database: "), what="it is noticed")
    answer = assert_fails(pool, timeout_ms=1500)
    assert DB_TIMEOUT / 1000 - 0.1 <= answer.seconds < 1.5 + DB_TIMEOUT / 1000 + SLACK


def test_stopping_while_the_database_is_away(postgres, pool):
    waiting = pool.fcgi.later(new_session(), new_url(), timeout_ms=20000)
    postgres.stop()
    wait_until(lambda: pool.logged("warning: database: "), what="it is noticed")
    assert pool.stop() == 0
    assert waiting.result(1).status in (404, 500)


# Hanging

def test_a_machine_that_hangs(postgres, pool, merchant):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    waiting = pool.fcgi.later(session, url, timeout_ms=20000)
    postgres.pause()
    for _ in range(3):
        assert assert_fails(pool).seconds < DB_TIMEOUT / 1000 + SLACK
    assert not waiting.done()
    postgres.resume()
    merchant.pay(order)
    assert_order(waiting.result(), 200, order)
    wait_until_served(pool)


def test_stopping_while_the_database_hangs(postgres, pool):
    waiting = pool.fcgi.later(new_session(), new_url(), timeout_ms=20000)
    postgres.pause()
    time.sleep(0.2)  # a check is on its way by then
    assert pool.stop() == 0
    assert waiting.result(1).status in (404, 500)


def test_a_table_that_is_locked(postgres, pool, merchant):
    """A statement that does not answer is cancelled, and does not stay behind in the server."""
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    wait_until_served(pool)
    with postgres.session("shop") as other:
        other.run("BEGIN; LOCK TABLE merchant.merchant_contract_terms")
        for _ in range(3):
            assert assert_fails(pool).seconds < DB_TIMEOUT / 1000 + SLACK
        wait_until(lambda: connections(merchant, "AND wait_event_type = 'Lock'") <= 1, 2, "an end of old statements")
        assert connections(merchant) <= 1
    wait_until_served(pool, session, url)
    assert_order(pool.fcgi.ask(session, url), 200, order)


def connections(merchant, condition=""):
    return int(merchant.sql(f"SELECT count(*) FROM pg_stat_activity WHERE usename = 'merchant-sessions' {condition}"))


# Thrown out

def test_a_connection_that_is_terminated(pool, merchant):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    for _ in range(3):
        assert_order(pool.fcgi.ask(session, url), 200, order)
        merchant.postgres.end_sessions()
    assert_order(pool.fcgi.ask(session, url), 200, order)


def attempts(pool):
    return len(pool.logged("trying again"))


def test_the_database_is_not_pestered(postgres, start_pool):
    """Pauses between attempts grow from 100 to 500 ms, at random from their upper half."""
    pool = start_pool("--verbose", *OPTIONS)
    pool.expect(TROUBLE)
    wait_until_served(pool)
    postgres.stop()
    time.sleep(1)  # the pauses have grown by then
    before = attempts(pool)
    time.sleep(3)
    postgres.start()
    assert 4 <= attempts(pool) - before <= 3 / 0.25


@pytest.mark.parametrize("seconds", [0.2, 4])
def test_served_soon_after_the_return(postgres, start_pool, merchant, seconds):
    """However long the database was away."""
    pool = start_pool(*OPTIONS)
    pool.expect(TROUBLE)
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    wait_until_served(pool, session, url)
    postgres.stop()
    time.sleep(seconds)
    postgres.start()
    wait_until(lambda: pool.fcgi.ask(session, url).status == 200, 1 + SLACK, "an answer")
    assert_order(pool.fcgi.ask(session, url), 200, order)


def test_each_end_of_a_connection_is_logged(pool, merchant):
    """A connection that lasted ten seconds has worked, even if no request came."""
    wait_until_served(pool)
    for ends in range(1, 4):
        merchant.postgres.end_sessions()
        wait_until(lambda: attempts(pool) == ends, 5, "a line of the log")
        wait_until(lambda: len(pool.logged("connected")) == ends + 1, 1 + SLACK, "a connection soon after")
        time.sleep(PROVEN_AGE + 0.5 if ends < 3 else 0)


def test_a_connection_that_did_not_last_is_not_logged_again(pool, merchant):
    """A database that ends each connection at once would fill the log."""
    wait_until_served(pool)
    for _ in range(3):
        merchant.postgres.end_sessions()
        time.sleep(1)
    assert attempts(pool) == 1


# Several hosts

@pytest.fixture(scope="module")
def other(postgres):
    """Another cluster, which hangs in these tests."""
    with Postgres() as cluster:
        make_shop(cluster, "shop")
        cluster.pause()
        yield cluster


def hosts(*clusters):
    directories = ",".join(str(cluster.directory) for cluster in clusters)
    ports = ",".join(str(cluster.port) for cluster in clusters)
    return f"host={directories} port={ports}"


def assert_served_after_one_failure(pool, merchant):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    first = pool.fcgi.ask(session, url)
    if first.status == 500:
        first = pool.fcgi.ask(session, url)
        assert first.seconds < DB_TIMEOUT / 1000
    assert_order(first, 200, order)


@pytest.mark.parametrize("options", ["", "target_session_attrs=read-write", "target_session_attrs=prefer-standby"])
def test_a_host_that_hangs_is_passed_over(postgres, other, start_pool, merchant, options):
    pool = start_pool(*OPTIONS, database=f"{hosts(other, postgres)} dbname=shop user={ROLE} {options}")
    pool.expect("no answer within")
    assert_served_after_one_failure(pool, merchant)


def test_a_host_that_hangs_among_others(postgres, other, start_pool, merchant):
    """The host before it refuses connections. It is not tried again before the host after it is tried."""
    uri = f"postgresql://{ROLE}@127.0.0.1:1,127.0.0.1:{other.port},127.0.0.1:{postgres.port}/shop"
    pool = start_pool(*OPTIONS, database=uri)
    pool.expect("no answer within")
    assert_served_after_one_failure(pool, merchant)
    assert len(pool.logged("no answer within")) == 1


@pytest.mark.parametrize("names", [("PGHOST", "PGPORT"), ("PGHOSTADDR", "PGPORT"), ("service",)])
def test_hosts_from_the_environment(postgres, other, start_pool, merchant, tmp_path, names):
    ports = f"{other.port},{postgres.port}"
    service = tmp_path / "service"
    service.write_text(f"[shop]\nhost=127.0.0.1,127.0.0.1\nport={ports}\n")
    env = {"PGUSER": ROLE, "PGDATABASE": "shop", "PGSERVICEFILE": str(service)}
    env |= {"PGSERVICE": "shop"} if names == ("service",) else dict(zip(names, ("127.0.0.1,127.0.0.1", ports)))
    pool = start_pool(*OPTIONS, database=None, env=env)
    pool.expect("no answer within")
    assert_served_after_one_failure(pool, merchant)


def test_a_host_that_begins_to_hang(postgres, other, start_pool, merchant):
    """The other host is tried before it."""
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    other.resume()
    pool = start_pool(*OPTIONS, database=f"{hosts(other, postgres)} dbname=shop user={ROLE}")
    pool.expect("no answer within")
    assert_error(pool.fcgi.ask(session, url), 404, 2038)
    other.pause()
    assert_fails(pool)
    answer = pool.fcgi.ask(session, url)
    assert_order(answer, 200, order)
    assert answer.seconds < DB_TIMEOUT / 1000


def test_no_database_of_that_name(postgres, start_pool):
    pool = start_pool(*OPTIONS, database=postgres.conninfo("nowhere"))
    pool.expect(TROUBLE)
    assert_fails(pool)
    assert pool.logged("nowhere")


def test_connections_say_whose_they_are(pool, merchant):
    wait_until_served(pool)
    names = merchant.sql("SELECT application_name FROM pg_stat_activity WHERE usename = 'merchant-sessions'").split("\n")
    assert names and all(name.startswith("merchant-sessions") for name in names)


# Rights and tables

COLUMNS = {
    "merchant_instances": ["merchant_serial", "merchant_id"],
    "merchant_contract_terms": ["order_serial", "merchant_serial", "order_id", "creation_time", "paid", "fulfillment_url",
                                "session_id"],
    "merchant_orders": ["order_serial", "merchant_serial", "order_id", "creation_time", "fulfillment_url", "session_id"],
}


@pytest.fixture(scope="module")
def readable(postgres):
    """A merchant whose rights are taken away and given back."""
    merchant = make_merchant(postgres, "rights", instances=("shop",))
    return merchant, postgres.conninfo("rights")


@pytest.mark.parametrize("table", COLUMNS)
def test_a_table_that_may_not_be_read(postgres, start_pool, readable, table):
    merchant, database = readable
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    merchant.sql(f'REVOKE SELECT ({", ".join(COLUMNS[table])}) ON {table} FROM "merchant-sessions"')
    pool = start_pool(*OPTIONS, database=database)
    pool.expect(table)
    assert_fails(pool)
    assert pool.logged(f"(error|warning): .*{table}"), pool.log_lines()
    postgres.psql_file(ROOT / "sql/role.sql", "rights")
    wait_until_served(pool, session, url)
    assert_order(pool.fcgi.ask(session, url), 200, order)


@pytest.mark.parametrize("table,column", [("merchant_contract_terms", "paid"), ("merchant_instances", "merchant_id")])
def test_a_column_that_may_not_be_read(postgres, start_pool, readable, table, column):
    merchant, database = readable
    merchant.sql(f'REVOKE SELECT ({column}) ON {table} FROM "merchant-sessions"')
    pool = start_pool(*OPTIONS, database=database)
    pool.expect(table)
    assert_fails(pool)
    assert pool.logged(f"{column}.*{table}|{table}.*{column}"), pool.log_lines()
    postgres.psql_file(ROOT / "sql/role.sql", "rights")
    wait_until_served(pool)


def test_rights_that_are_taken_away_meanwhile(postgres, start_pool, readable):
    merchant, database = readable
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    pool = start_pool(*OPTIONS, database=database)
    pool.expect("merchant_contract_terms|" + TROUBLE)
    waiting = pool.fcgi.later(session, url, timeout_ms=20000)
    merchant.sql('REVOKE SELECT (paid) ON merchant_contract_terms FROM "merchant-sessions"')
    assert_fails(pool)
    assert not waiting.done()
    postgres.psql_file(ROOT / "sql/role.sql", "rights")
    merchant.pay(order)
    assert_order(waiting.result(), 200, order)


@pytest.mark.parametrize("table", COLUMNS)
def test_rows_that_a_policy_hides(postgres, start_pool, readable, table):
    """Row-level security leaves them out without a word: a session that is paid would be unknown."""
    merchant, database = readable
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    pool = start_pool(*OPTIONS, database=database)
    pool.expect("row-level security|" + TROUBLE)
    wait_until_served(pool, session, url)
    merchant.sql(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    try:
        assert_fails(pool)
        assert_error(pool.fcgi.ask(session, url), 500, 53)
        assert pool.logged(f"(error|warning): .*row-level security.*{table}"), pool.log_lines()
        merchant.sql('ALTER ROLE "merchant-sessions" BYPASSRLS')
        wait_until_served(pool, session, url)
        assert_order(pool.fcgi.ask(session, url), 200, order)
    finally:
        merchant.sql(f'ALTER TABLE {table} DISABLE ROW LEVEL SECURITY; ALTER ROLE "merchant-sessions" NOBYPASSRLS')


def test_defaults_for_transactions_of_the_database(postgres, start_pool):
    """A lookup does not take part in conflicts of serializable transactions, and does not wait for them."""
    merchant = make_merchant(postgres, "defaults", instances=("shop",))
    postgres.psql("""ALTER DATABASE defaults SET default_transaction_isolation = 'serializable';
                     ALTER DATABASE defaults SET default_transaction_deferrable = on""")
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    pool = start_pool(*OPTIONS, database=postgres.conninfo("defaults"))
    with postgres.session("defaults") as writer:
        writer.run("BEGIN; UPDATE merchant.merchant_contract_terms SET paid = paid")
        assert_order(pool.fcgi.ask(session, url), 200, order)
        locks = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE mode = 'SIReadLock' AND usename = '{}'"
        assert postgres.psql(locks.format("merchant-sessions"), "defaults") == "0"
        writer.run("ROLLBACK")


def test_tables_that_are_not_there_yet(postgres, start_pool):
    postgres.psql("CREATE DATABASE empty")
    pool = start_pool(*OPTIONS, database=postgres.conninfo("empty"))
    pool.expect("merchant_")
    assert_fails(pool)
    assert pool.logged("(error|warning): .*merchant_"), pool.log_lines()
    postgres.psql(ddl(), "empty")
    postgres.psql_file(ROOT / "sql/role.sql", "empty")
    Merchant(postgres, "empty").instance("shop")
    wait_until_served(pool)
    assert_error(pool.fcgi.ask(new_session(), new_url()), 404, 2038)


def test_a_column_that_is_not_there(postgres, start_pool):
    merchant = make_merchant(postgres, "strange", instances=("shop",))
    merchant.sql("ALTER TABLE merchant_contract_terms DROP session_id")
    pool = start_pool(*OPTIONS, database=postgres.conninfo("strange"))
    pool.expect("merchant_contract_terms")
    assert_fails(pool)
    assert pool.logged("session_id.*merchant_contract_terms|merchant_contract_terms.*session_id"), pool.log_lines()


@pytest.mark.parametrize("statement", ["SELECT contract_terms FROM merchant_contract_terms", "SELECT * FROM merchant_orders",
                                       "SELECT claim_token FROM merchant_orders",
                                       "UPDATE merchant_contract_terms SET paid = true",
                                       "DELETE FROM merchant_orders", "INSERT INTO merchant_instances DEFAULT VALUES",
                                       "CREATE TABLE merchant_toys ()"])
def test_what_the_role_may_not_do(postgres, database, statement):
    with pytest.raises(RuntimeError, match="permission denied"):
        postgres.psql(f"SET search_path = merchant; {statement}", "shop", user="merchant-sessions")


# A protocol that is spoilt

# BindComplete, which comes before the rows, and a CopyInResponse.
BOUND, COPY = b"2\0\0\0\x04", b"G\0\0\0\x07\0\0\0"


@pytest.mark.parametrize("layout", ["2023", "2026"])
def test_a_copy_that_nobody_asked_for(postgres, start_pool, layout):
    """libpq returns the same result again and again, until the connection is closed."""
    merchant = make_merchant(postgres, f"copy {layout}", **LAYOUTS[layout])
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    with proxy.Proxy(postgres.port) as road:
        conninfo = f"host=127.0.0.1 port={road.port} dbname='{merchant.db}' user={ROLE} sslmode=disable"
        pool = start_pool(*OPTIONS, database=conninfo)
        pool.expect(TROUBLE)
        assert_order(pool.fcgi.ask(session, url), 202, order)
        road.road = proxy.replaced(BOUND, COPY)
        assert_fails(pool)
        road.road = proxy.clear
        wait_until_served(pool, session, url)
        assert_order(pool.fcgi.ask(session, url), 202, order)
