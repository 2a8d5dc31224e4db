# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests with timeout_ms: what they wait for, how long, and that they do not delay others."""

import contextlib
import select
import selectors
import signal
import socket
import statistics
import time

import pytest

import fastcgi
from client import assert_error, assert_order, target
from merchant import new_session, new_url
from processes import wait_until

POLL = 100
SLACK = 1.0


@pytest.fixture
def quick(start_site):
    """One worker that checks for changes every tenth of a second."""
    return start_site("--poll-interval", str(POLL))


def seconds_since(begun):
    return time.monotonic() - begun


def let_polls_pass():
    """Long enough for a change to be noticed and looked at."""
    time.sleep(3 * POLL / 1000)


# What is waited for

def test_paid_meanwhile(quick, merchant):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    waiting = quick.http.later(session, url, timeout_ms=20000)
    assert not waiting.done()
    merchant.pay(order)
    paid = time.monotonic()
    assert_order(waiting.result(), 200, order)
    assert seconds_since(paid) < POLL / 1000 + SLACK


def test_unknown_then_offered_claimed_and_paid(quick, merchant):
    session, url = new_session(), new_url()
    waiting = quick.http.later(session, url, timeout_ms=20000)
    order = merchant.offer(session, url)
    let_polls_pass()
    assert not waiting.done()
    merchant.claim(order)
    let_polls_pass()
    assert not waiting.done()
    merchant.pay(order)
    assert_order(waiting.result(), 200, order)


def test_another_order_is_paid(quick, merchant):
    session, url = new_session(), new_url()
    merchant.contract(session, url)
    waiting = quick.http.later(session, url, timeout_ms=20000)
    order = merchant.contract(session, url, paid=True, age=1000)
    assert_order(waiting.result(), 200, order)


def test_paid_at_once(quick, merchant):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    answer = quick.http.ask(session, url, timeout_ms=20000)
    assert_order(answer, 200, order)
    assert answer.seconds < SLACK


def test_the_default_poll_interval(start_pool, postgres, merchant):
    """While a request waits, the database is asked 40 times a second whether it has changed, otherwise never."""
    def checks():
        return sum("execute merchant_sessions_changes" in line for line in postgres.log_lines())
    merchant.sql("""ALTER ROLE "merchant-sessions" SET log_statement = 'all'""")
    try:
        pool = start_pool()
        assert pool.fcgi.ask(new_session(), new_url()).status == 404
        assert checks() == 0
        assert pool.fcgi.ask(new_session(), new_url(), timeout_ms=2000).status == 404
        assert 30 <= checks() <= 81
    finally:
        merchant.sql('ALTER ROLE "merchant-sessions" RESET log_statement')


def test_other_sessions_keep_waiting(quick, merchant):
    orders = []
    for _ in range(10):
        session, url = new_session(), new_url()
        order = merchant.contract(session, url)
        orders.append((order, quick.http.later(session, url, timeout_ms=20000)))
    for order, waiting in orders:
        merchant.pay(order)
        assert_order(waiting.result(), 200, order)
    assert all(waiting.done() for _, waiting in orders)


def test_many_wait_for_the_same_key(quick, merchant):
    session, url = new_session(), new_url()
    with Crowd(quick.nginx.port, [(session, url)] * 100) as crowd:
        order = merchant.contract(session, url)
        let_polls_pass()
        assert crowd.answered() == 0
        merchant.pay(order)
        crowd.finish(within=3)
        assert set(crowd.statuses()) == {200}
        assert all(reply.endswith(f'{{"order_id":"{order}"}}'.encode()) for reply in crowd.bodies())


# How long

@pytest.mark.parametrize("timeout_ms", [300, 1000, 1250])
def test_timing_out_unknown(quick, timeout_ms):
    answer = quick.http.ask(new_session(), new_url(), timeout_ms=timeout_ms)
    assert_error(answer, 404, 2038)
    assert timeout_ms / 1000 <= answer.seconds < timeout_ms / 1000 + SLACK


@pytest.mark.parametrize("make", ["contract", "offer"])
def test_timing_out_unpaid(quick, merchant, make):
    session, url = new_session(), new_url()
    order = getattr(merchant, make)(session, url)
    answer = quick.http.ask(session, url, timeout_ms=600)
    assert_order(answer, 202, order)
    assert 0.6 <= answer.seconds < 0.6 + SLACK


def test_created_meanwhile_but_not_paid(quick, merchant):
    session, url = new_session(), new_url()
    waiting = quick.http.later(session, url, timeout_ms=1000)
    order = merchant.offer(session, url)
    answer = waiting.result()
    assert_order(answer, 202, order)
    assert answer.seconds >= 1


def test_looked_up_a_last_time_at_the_deadline(start_site, merchant):
    site = start_site("--poll-interval", "30000")
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    waiting = site.http.later(session, url, timeout_ms=1000)
    merchant.pay(order)
    answer = waiting.result()
    assert_order(answer, 200, order)
    assert 1 <= answer.seconds < 1 + SLACK


def test_polling_goes_on_until_the_end(quick, merchant):
    """Looked up at each interval, not only at the first and the last."""
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    waiting = quick.http.later(session, url, timeout_ms=20000)
    time.sleep(1.5)  # many intervals
    merchant.pay(order)
    paid = time.monotonic()
    assert_order(waiting.result(), 200, order)
    assert seconds_since(paid) < POLL / 1000 + SLACK


@pytest.mark.parametrize("timeout_ms", ["701", "3600000", "2147483648", "4294967297", "18446744073709551617", "9" * 500])
def test_longest_wait_granted(start_site, timeout_ms):
    site = start_site("--max-wait", "700")
    answer = site.http.ask(new_session(), new_url(), timeout_ms=timeout_ms)
    assert_error(answer, 404, 2038)
    assert 0.7 <= answer.seconds < 0.7 + SLACK


def test_no_wait_at_all(start_site):
    site = start_site("--max-wait", "0")
    answer = site.http.ask(new_session(), new_url(), timeout_ms=5000)
    assert_error(answer, 404, 2038)
    assert answer.seconds < SLACK


def test_head_never_waits(quick):
    answer = quick.http.ask(new_session(), new_url(), timeout_ms=5000, method="HEAD")
    assert answer.status == 404
    assert answer.seconds < SLACK


@pytest.mark.parametrize("method", ["OPTIONS", "POST"])
def test_other_methods_never_wait(quick, method):
    assert quick.http.ask(new_session(), new_url(), timeout_ms=5000, method=method).seconds < SLACK


# How many

def park(pool, session=None, url=None, timeout_ms=20000, keep=False):
    """A connection on which a request waits. It is parked, or refused a place and answered."""
    before = pool.metrics()["waiting"]
    connection = fastcgi.Connection(pool.connect_to)
    uri = target(session or new_session(), url or new_url(), "shop", timeout_ms)
    connection.send(fastcgi.request(fastcgi.variables(uri), keep=keep))
    wait_until(lambda: pool.metrics()["waiting"] > before or select.select([connection.socket], [], [], 0)[0])
    return connection


def test_too_many_waiting_are_answered_at_once(start_pool, merchant):
    pool = start_pool("--max-waiting", "3", "--poll-interval", str(POLL))
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    with contextlib.ExitStack() as stack:
        parked = [stack.enter_context(park(pool)) for _ in range(2)] + [stack.enter_context(park(pool, session, url))]
        for _ in range(3):
            answer = pool.fcgi.ask(new_session(), new_url(), timeout_ms=5000)
            assert_error(answer, 404, 2038)
            assert answer.seconds < SLACK
        answer = pool.fcgi.ask(session, url, timeout_ms=5000)
        assert_order(answer, 202, order)
        assert answer.seconds < SLACK
        merchant.pay(order)
        assert parked[2].reply().status == 200
        assert pool.fcgi.ask(new_session(), new_url(), timeout_ms=500).seconds >= 0.5


def test_nobody_may_wait(start_pool):
    answer = start_pool("--max-waiting", "0").fcgi.ask(new_session(), new_url(), timeout_ms=5000)
    assert_error(answer, 404, 2038)
    assert answer.seconds < SLACK


@pytest.mark.parametrize("how", ["close", "reset", "abort"])
def test_a_client_that_leaves_makes_room_at_once(start_pool, how):
    pool = start_pool("--max-waiting", "1")
    with park(pool) as leaving:
        assert pool.fcgi.ask(new_session(), new_url(), timeout_ms=5000).seconds < SLACK, "the place is not taken"
        if how == "close":
            leaving.close()
        elif how == "reset":
            leaving.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            leaving.close()
        else:
            leaving.send(fastcgi.abort())
        pool.wait_for_waiting(0)
        assert pool.fcgi.ask(new_session(), new_url(), timeout_ms=500).seconds >= 0.5, "the place is still taken"


def test_a_browser_that_leaves_makes_room_at_once(start_site):
    site = start_site("--max-waiting", "1")
    with socket.create_connection(("127.0.0.1", site.nginx.port)) as browser:
        browser.sendall(http_request(new_session(), new_url()))
        site.pool.wait_for_waiting(1)
        assert site.http.ask(new_session(), new_url(), timeout_ms=5000).seconds < SLACK
    site.pool.wait_for_waiting(0)
    assert site.http.ask(new_session(), new_url(), timeout_ms=500).seconds >= 0.5


def test_a_kept_connection_waits_again(quick, merchant):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    with park(quick.pool, timeout_ms=200, keep=True) as connection:
        assert connection.reply().status == 404
        uri = target(session, url, "shop", 20000)
        connection.send(fastcgi.request(fastcgi.variables(uri), keep=True, id=7))
        quick.pool.wait_for_waiting(1)
        merchant.pay(order)
        assert connection.reply(id=7).status == 200


# Nobody stands in another's way

def http_request(session, url, timeout_ms=40000):
    return (f"GET {target(session, url, 'shop', timeout_ms)} HTTP/1.1\r\n"
            "Host: shop.example\r\nConnection: close\r\n\r\n").encode()


class Crowd:
    """Many requests at once, each on a connection of its own, without a thread for each."""

    def __init__(self, port, keys, timeout_ms=40000):
        self.selector = selectors.DefaultSelector()
        self.replies = {}
        for session, url in keys:
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(http_request(session, url, timeout_ms))
            connection.setblocking(False)
            self.selector.register(connection, selectors.EVENT_READ)
            self.replies[connection] = b""
        self.size = len(keys)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.selector.close()
        for connection in self.replies:
            connection.close()

    def read(self, seconds=0):
        for key, _ in self.selector.select(seconds):
            more = key.fileobj.recv(65536)
            self.replies[key.fileobj] += more
            if not more:
                self.selector.unregister(key.fileobj)

    def answered(self):
        self.read()
        return sum(1 for reply in self.replies.values() if reply)

    def finish(self, within):
        deadline = time.monotonic() + within
        while self.selector.get_map():
            assert time.monotonic() < deadline, f"{len(self.selector.get_map())} of {self.size} not answered"
            self.read(0.1)

    def statuses(self):
        return [int(reply.split(b" ", 2)[1]) for reply in self.replies.values()]

    def bodies(self):
        return [dechunked(reply) for reply in self.replies.values()]


def dechunked(reply):
    """The body of a short answer, whether it has a length or comes as one chunk."""
    head, _, body = reply.partition(b"\r\n\r\n")
    return body.split(b"\r\n")[1] if b"chunked" in head else body


def seconds_of_a_new_request(site, count=40):
    return [site.http.ask(new_session(), new_url()).seconds for _ in range(count)]


def test_a_thousand_wait_on_one_worker(start_site, merchant):
    site = start_site()
    alone = seconds_of_a_new_request(site)
    keys = [(new_session(), new_url()) for _ in range(1000)]
    with Crowd(site.nginx.port, keys) as crowd:
        site.pool.wait_for_waiting(1000)
        assert crowd.answered() == 0
        among = seconds_of_a_new_request(site)
        assert statistics.median(among) < statistics.median(alone) + 0.05
        assert max(among) < 0.5

        session, url = keys[700]
        order = merchant.contract(session, url, paid=True)
        wait_until(crowd.answered, seconds=10, what="the one that was paid")
        assert crowd.answered() == 1
        assert sorted(crowd.replies.values())[-1].split(b" ", 2)[1] == b"200"
        assert_order(site.http.ask(session, url), 200, order)

        site.pool.send(signal.SIGTERM)
        crowd.finish(within=4)
        assert site.pool.process.wait(2) == 0
        assert sorted(crowd.statuses()) == [200] + [404] * 999


def test_a_rush_after_a_quiet_time(start_site, merchant):
    """The cost of one lookup does not tell that of a thousand: these must not be polled more rarely because of it."""
    site = start_site()
    keys = [(new_session(), new_url()) for _ in range(1000)]
    with Crowd(site.nginx.port, [(new_session(), new_url())]):
        time.sleep(1.5)  # the quiet time
        with Crowd(site.nginx.port, keys) as crowd:
            site.pool.wait_for_waiting(1001)
            merchant.contract(*keys[500], paid=True)
            wait_until(crowd.answered, seconds=2, what="the one that was paid")


def test_a_thousand_time_out_together(start_site):
    site = start_site("--max-wait", "1500")
    with Crowd(site.nginx.port, [(new_session(), new_url()) for _ in range(1000)]) as crowd:
        crowd.finish(within=6)
        assert set(crowd.statuses()) == {404}
    assert site.http.ask(new_session(), new_url()).seconds < SLACK


def test_a_worker_waits_in_one_database_connection(start_pool, merchant):
    def connections():
        return int(merchant.sql("SELECT count(*) FROM pg_stat_activity WHERE usename = 'merchant-sessions'"))
    before = connections()
    pool = start_pool()
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(park(pool))
        assert connections() == before + 1
        assert len(pool.workers()) == 1
