# SPDX-License-Identifier: GPL-3.0-or-later
"""A primary and its standby as two hosts of the connection string: the primary goes away, and the standby is promoted."""

import pytest

from client import assert_error, assert_order
from merchant import Merchant, new_session, new_url
from processes import wait_until
from servers import ROLE, Postgres, Standby, make_shop

DB_TIMEOUT = 500


@pytest.fixture
def postgres():
    """The primary, which goes away."""
    with Postgres() as cluster:
        yield cluster


@pytest.fixture
def database(postgres):
    return make_shop(postgres, "shop")


@pytest.fixture
def standby(database, postgres):
    with Standby(postgres) as cluster:
        yield cluster


def ask_until_served(pool, session, url):
    wait_until(lambda: pool.fcgi.ask(session, url).status != 500, 8, "an answer again")
    return pool.fcgi.ask(session, url)


@pytest.mark.parametrize("attributes,end,served_by_standby", [
    ("any", "stop", True), ("any", "hang", True), ("read-write", "stop", False), ("read-write", "hang", False),
    ("prefer-standby", "hang", True)])
def test_failover(start_pool, postgres, standby, attributes, end, served_by_standby):
    """Those who wait live through it, and see a payment that only the new primary knows."""
    merchant = Merchant(postgres, "shop")
    pool = start_pool("--db-timeout", str(DB_TIMEOUT), "--poll-interval", "100",
                      database=f"host={postgres.directory},{standby.directory} port={postgres.port},{standby.port} "
                               f"dbname=shop user={ROLE} target_session_attrs={attributes}")
    pool.expect("database: .*trying again")
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    waiting = pool.fcgi.later(session, url, timeout_ms=30000)
    wait_until(lambda: order in standby.psql("SELECT order_id FROM merchant.merchant_contract_terms", "shop"), 10, "replication")
    if end == "hang":
        postgres.pause()
    else:
        postgres.stop()
    if served_by_standby:
        assert_order(ask_until_served(pool, session, url), 202, order)
    else:
        assert_error(pool.fcgi.ask(session, url), 500, 53)
    standby.promote()
    merchant.postgres = standby
    assert_order(ask_until_served(pool, session, url), 202, order)
    assert not waiting.done()
    merchant.pay(order)
    assert_order(waiting.result(5), 200, order)
