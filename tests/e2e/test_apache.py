# SPDX-License-Identifier: GPL-3.0-or-later
"""The pool behind Apache, as conf/apache-proxy.conf has it."""

import shutil

import pytest

from client import Http, assert_error, assert_order
from conftest import CheckedPool
from merchant import MARKER, new_session, new_url
from servers import Apache, upstream

pytestmark = pytest.mark.skipif(not shutil.which("apache2", path="/usr/sbin"), reason="apache2 is not installed")


@pytest.fixture(scope="module")
def http(program, database):
    # Apache's user is another one than the pool's.
    with CheckedPool(program, "--workers", "2", "--socket-mode", "0666", database=database) as pool, \
            Apache(upstream(pool.socket, "conf/apache-proxy.conf")) as apache:
        yield Http(apache.port)
        assert [line for line in apache.log_lines() if ":notice]" not in line] == []


def test_paid_and_unpaid(http, merchant):
    url = new_url()
    paid, unpaid = new_session(), new_session()
    orders = merchant.contract(paid, url, paid=True), merchant.contract(unpaid, url)
    assert_order(http.ask(paid, url), 200, orders[0])
    assert_order(http.ask(unpaid, url), 202, orders[1])
    assert_error(http.ask(new_session(), url), 404, 2038)
    assert_error(http.ask(paid, None), 400, 25, "fulfillment_url")


@pytest.mark.parametrize("session", ["a/b", "50%", "%2F", "a+b c", "ä€😀", "?&=#;", "..", "a//b", "<'\">", "%25%00"])
def test_session_ids(http, merchant, session):
    session, url = MARKER + session, new_url()
    order = merchant.contract(session, url, paid=True)
    assert_order(http.ask(session, url), 200, order)


def test_waiting(http, merchant):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    waiting = http.later(session, url, timeout_ms=20000)
    assert not waiting.done()
    merchant.pay(order)
    assert_order(waiting.result(), 200, order)


def test_without_an_instance_and_below_a_base_path(http):
    assert_error(http.ask(new_session(), new_url(), instance=None), 404, 2038)
    assert_error(http.get(f"/merchant-backend/instances/shop/sessions/{new_session()}"), 400, 25, "fulfillment_url")


@pytest.mark.parametrize("method,status", [("HEAD", 404), ("OPTIONS", 204), ("POST", 405)])
def test_other_methods(http, method, status):
    assert http.ask(new_session(), new_url(), method=method).status == status
