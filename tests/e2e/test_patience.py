# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a request waits for a database that is slow, and what it is told when the program stops meanwhile."""

import contextlib
import itertools
import signal
import threading
import time

import pytest

import fastcgi
from client import assert_error, assert_order, target
from layouts import make_merchant
from merchant import new_session, new_url
from processes import children, wait_until

SLACK = 1.0
CROWD = 150


def park_all(pool, keys, timeouts):
    """A long poll for each key, the timeouts (in ms) in turn; returns the connections."""
    connections = []
    for (session, url), timeout_ms in zip(keys, itertools.cycle(timeouts)):
        connection = fastcgi.Connection(pool.connect_to)
        connection.send(fastcgi.request(fastcgi.variables(target(session, url, "shop", timeout_ms))))
        connections.append(connection)
    pool.wait_for_waiting(len(connections))
    return connections


def statuses(connections):
    """The status of each answer; None where there is none."""
    replies = []
    for connection in connections:
        with connection:
            replies.append(connection.reply())
    return [reply and reply.status for reply in replies]


@pytest.fixture
def lock(postgres, merchant):
    """Hold the lock of a migration on the contracts while the block runs."""
    @contextlib.contextmanager
    def hold():
        with postgres.session("shop") as session:
            session.run("BEGIN; LOCK TABLE merchant.merchant_contract_terms")
            yield
            session.run("COMMIT")
    return hold


# Stopping

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("seconds", [0.5, 3])
def test_nobody_is_told_500_whose_state_is_known(start_pool, merchant, lock, number, seconds):
    """The table is locked while the program stops: for a moment, or for longer than it takes to stop."""
    pool = start_pool(workers=2)
    pool.expect("statement timeout|no answer within")
    session, url = new_session(), new_url()
    merchant.contract(session, url)
    keys = [(session, url) if n % 2 else (new_session(), new_url()) for n in range(CROWD)]
    connections = park_all(pool, keys, [1300, 1600, 5000, 20000])
    before = set(children(pool.pid))
    with lock():
        time.sleep(0.4)  # some deadlines have passed by now, and are being asked about
        pool.send(number)
        time.sleep(seconds)
    assert statuses(connections) == [404, 202] * (CROWD // 2)
    if number == signal.SIGTERM:
        assert pool.process.wait(2) == 0
    else:
        wait_until(lambda: not before & set(children(pool.pid)), 10, "new workers")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1])
@pytest.mark.parametrize("workers", [0, 1])
def test_stopping_asks_a_last_time(start_pool, merchant, number, workers):
    """An order that was paid a moment ago, which nobody has been told yet."""
    pool = start_pool("--poll-interval", "30000", workers=workers)
    orders = [(new_session(), new_url()) for _ in range(3)]
    names = [merchant.contract(*key) for key in orders]
    connections = park_all(pool, orders, [20000])
    for name in names:
        merchant.pay(name)
    assert pool.stop(number) == 0
    assert statuses(connections) == [200] * 3


# Patience

class SlowMerchant:
    """A merchant where each statement that reads contracts takes `seconds`."""

    def __init__(self, postgres, db, seconds):
        self.merchant = make_merchant(postgres, db, instances=("shop",))
        self.merchant.sql(f"""
            ALTER TABLE merchant_contract_terms RENAME TO contracts;
            CREATE VIEW merchant_contract_terms AS
                SELECT * FROM contracts WHERE (SELECT true FROM pg_sleep({seconds}));
            GRANT SELECT ON merchant_contract_terms TO "merchant-sessions" """)
        self.database = postgres.conninfo(f"'{db}'")


def test_a_request_never_waits_longer_than_db_timeout(postgres, start_pool):
    """A request that comes just after a batch was sent would have its answer after 1.6 s, by the next batch."""
    slow = SlowMerchant(postgres, "slow", 0.8)
    pool = start_pool("--db-timeout", "1000", database=slow.database)
    pool.expect("index", "statement timeout|no answer within")
    answers = []

    def ask():
        answers.append(pool.fcgi.ask(new_session(), new_url()))

    threads = [threading.Thread(target=ask) for _ in range(30)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert {answer.status for answer in answers} <= {404, 500}
    assert any(answer.status == 500 for answer in answers), "nobody was told that the database is slow"
    assert max(answer.seconds for answer in answers) < 1 + SLACK / 2


def test_a_deadline_that_falls_into_a_reconnect(start_pool, merchant):
    """The database is away for a moment: there is still time to ask it."""
    pool = start_pool()
    pool.expect("terminat|connection")
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    waiting = pool.fcgi.later(session, url, timeout_ms=1500)
    unknown = pool.fcgi.later(new_session(), new_url(), timeout_ms=1400)
    time.sleep(1)
    begun = time.monotonic()
    while time.monotonic() < begun + 0.6:
        merchant.postgres.end_sessions()
    assert_order(waiting.result(), 202, order)
    assert_error(unknown.result(), 404, 2038)


def test_a_parked_request_that_the_database_never_answers(start_pool, lock):
    """The request waits for --db-timeout from its deadline on, and no longer."""
    pool = start_pool("--db-timeout", "500")
    pool.expect("statement timeout|no answer within")
    waiting = pool.fcgi.later(new_session(), new_url(), timeout_ms=1000)
    with lock():
        answer = waiting.result()
    assert_error(answer, 500, 53)
    assert 1.5 <= answer.seconds < 1.5 + SLACK
