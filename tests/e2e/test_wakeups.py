# SPDX-License-Identifier: GPL-3.0-or-later
"""Two thousand requests wait. Each is answered when its own order is paid. A quiet database is not polled."""

import collections
import itertools
import selectors
import threading
import time

import pytest

import fastcgi
from client import target
from merchant import new_session, new_url
from own_cluster import database, merchant  # noqa: F401
from processes import wait_until
from servers import Postgres

PARKED = 2000
SOON = 2.0


class Parked:
    """Long polls, each on a connection of its own. `answers`: session → moment, status and body of the answer."""

    def __init__(self, pool, keys, timeout_ms=40000):
        self.answers = {}
        self._selector = selectors.DefaultSelector()
        self._received = collections.defaultdict(bytes)
        for session, url in keys:
            connection = fastcgi.Connection(pool.connect_to)
            connection.send(fastcgi.request(fastcgi.variables(target(session, url, "shop", timeout_ms))))
            self._selector.register(connection.socket, selectors.EVENT_READ, session)
        self._stopping = False
        self._thread = threading.Thread(target=self._read)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopping = True
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()

    def _read(self):
        while not self._stopping:
            for key, _ in self._selector.select(0.05):
                more = key.fileobj.recv(65536)
                self._received[key.data] += more
                if not more:
                    self._selector.unregister(key.fileobj)
                    key.fileobj.close()
                    self._note(key.data, self._received.pop(key.data))

    def _note(self, session, records):
        head, _, body = records[8:].partition(b"\r\n\r\n")
        self.answers[session] = time.monotonic(), int(head[8:11]), body[:body.index(b"}") + 1].decode()

    def await_paid(self, session, order, committed):
        """The request is answered with this order soon after the COMMIT, which began and returned at these times."""
        wait_until(lambda: session in self.answers, SOON, "the answer to a payment")
        moment, status, body = self.answers[session]
        assert (status, body) == (200, f'{{"order_id":"{order}"}}')
        assert committed[0] <= moment <= committed[1] + SOON


@pytest.fixture(scope="module")
def postgres():
    """A cluster where nobody else commits."""
    with Postgres(max_prepared_transactions=20) as cluster:
        yield cluster


def index_scans(merchant):
    time.sleep(1.5)  # a session reports its counts a second after a statement, or when it ends
    return int(merchant.sql("""SELECT sum(idx_scan) FROM pg_stat_user_tables
                               WHERE relname IN ('merchant_contract_terms', 'merchant_orders')"""))


def test_a_quiet_database_is_not_polled(start_pool, merchant):
    pool = start_pool()
    with Parked(pool, [(new_session(), new_url()) for _ in range(100)]) as parked:
        time.sleep(3)  # a server process reports what it has scanned a second later, or more where the machine is busy
        before = index_scans(merchant)
        time.sleep(2)
        assert index_scans(merchant) == before
        merchant.contract(new_session(), new_url())
        assert index_scans(merchant) >= before + 100, "a change has to make all of them look again"
        assert not parked.answers


# Each of these is run for many sessions, side by side. They return when the COMMIT that pays began and when it was over.

def timed(session, sql):
    begun = time.monotonic()
    session.run(sql)
    return begun, time.monotonic()


def pay(order):
    return f"""UPDATE merchant_contract_terms SET paid = true WHERE order_id = '{order}';
               DELETE FROM merchant_orders WHERE order_id = '{order}'"""


def claim(order):
    return f"""INSERT INTO merchant_contract_terms (order_serial, merchant_serial, order_id, contract_terms, h_contract_terms,
                   creation_time, pay_deadline, refund_deadline, paid, wired, fulfillment_url, session_id, claim_token)
               SELECT order_serial, merchant_serial, order_id, contract_terms, sha512(order_serial::text::bytea),
                   creation_time, pay_deadline, 0, false, false, fulfillment_url, session_id, claim_token
               FROM merchant_orders WHERE order_id = '{order}'"""


def unclaim(order):
    return f"DELETE FROM merchant_contract_terms WHERE order_id = '{order}'"


def let_checks_pass(seconds):
    """The workers ask meanwhile whether the database has changed."""
    time.sleep(seconds)


def at_once(session, order):
    return timed(session, f"BEGIN; {claim(order)}; {pay(order)}; COMMIT")


def claimed_before(session, order):
    session.run(claim(order))
    let_checks_pass(0.1)
    return timed(session, f"BEGIN; {pay(order)}; COMMIT")


def unclaimed_and_claimed_again(session, order):
    session.run(claim(order))
    session.run(unclaim(order))
    let_checks_pass(0.05)
    session.run(claim(order))
    return timed(session, f"BEGIN; {pay(order)}; COMMIT")


def in_a_subtransaction(session, order):
    session.run(f"BEGIN; {claim(order)}; SAVEPOINT a; {pay(order)}; ROLLBACK TO a; SAVEPOINT b; {pay(order)}; RELEASE b")
    let_checks_pass(0.1)
    return timed(session, "COMMIT")


def in_a_long_transaction(session, order):
    session.run(f"BEGIN; {claim(order)}; {pay(order)}")
    let_checks_pass(1)
    return timed(session, "COMMIT")


def after_a_rollback(session, order):
    session.run(f"BEGIN; {claim(order)}; {pay(order)}; ROLLBACK")
    let_checks_pass(0.1)
    return timed(session, f"BEGIN; {claim(order)}; {pay(order)}; COMMIT")


def in_two_phases(session, order):
    session.run(f"BEGIN; {claim(order)}; {pay(order)}; PREPARE TRANSACTION '{order}'")
    let_checks_pass(0.2)
    return timed(session, f"COMMIT PREPARED '{order}'")


WAYS = [at_once, claimed_before, unclaimed_and_claimed_again, in_a_subtransaction, in_a_long_transaction, after_a_rollback,
        in_two_phases]


def pay_all(postgres, merchant, parked, orders, failures):
    """Pay orders one after another, in all ways; each has to be noticed."""
    try:
        with postgres.session(merchant.db) as session:
            session.run(f"SET search_path = {merchant.search_path}")
            for (key, order), way in zip(orders, itertools.cycle(WAYS)):
                committed = way(session, order)
                parked.await_paid(key[0], order, committed)
    except Exception as failure:  # reported by the main thread
        failures.append(failure)


def test_no_payment_is_overlooked(start_pool, postgres, merchant):
    pool = start_pool()
    keys = [(new_session(), new_url()) for _ in range(PARKED)]
    orders = [(key, merchant.offer(*key)) for key in keys[::40]]
    failures = []
    with Parked(pool, keys) as parked:
        pool.wait_for_waiting(PARKED)
        writers = [threading.Thread(target=pay_all, args=(postgres, merchant, parked, orders[n::4], failures)) for n in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert not failures, failures
        assert len(parked.answers) == len(orders)


def test_a_reconnect_in_the_middle(start_pool, merchant):
    """A payment made while there is no connection is found over the next one."""
    pool = start_pool()
    pool.expect("terminat|connection")
    keys = [(new_session(), new_url()) for _ in range(50)]
    orders = [merchant.contract(*key) for key in keys]
    with Parked(pool, keys) as parked:
        pool.wait_for_waiting(50)
        for key, order in zip(keys[:10], orders):
            begun = time.monotonic()
            merchant.postgres.end_sessions()
            merchant.pay(order)
            parked.await_paid(key[0], order, (begun, time.monotonic()))
