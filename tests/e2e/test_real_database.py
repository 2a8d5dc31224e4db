# SPDX-License-Identifier: GPL-3.0-or-later
"""A dump of a real merchant of 2022, where it is there: three paid orders, none with a session."""

import pytest

from client import assert_error, assert_order
from merchant import Merchant, new_session
from servers import ROOT

DUMP = ROOT.parent / "shared/data/taler-2022-08-20.sql"
URL = "taler://fulfillment-success/thx"

pytestmark = pytest.mark.skipif(not DUMP.exists(), reason="the dump of a real database is not there")


@pytest.fixture(scope="module")
def database(postgres):
    postgres.psql("CREATE DATABASE taler")
    postgres.psql_file(DUMP, "taler")
    postgres.psql_file(ROOT / "sql/role.sql", "taler")
    return postgres.conninfo("taler")


@pytest.fixture(scope="module")
def merchant(postgres, database):
    return Merchant(postgres, "taler", offers_have_session=False)


@pytest.fixture
def order(merchant):
    """One of the three, of the instance `default`."""
    assert merchant.sql(f"SELECT count(*) FROM merchant_contract_terms WHERE paid AND session_id = '' "
                        f"AND fulfillment_url = '{URL}'") == "3"
    order, = merchant.sql("SELECT order_id FROM merchant_contract_terms WHERE order_serial = 2").split()
    yield order
    merchant.sql("UPDATE merchant_contract_terms SET session_id = ''")


@pytest.mark.parametrize("prefix", ["", "/instances/default"])
@pytest.mark.parametrize("session", ["", "/", "?", "%00"])
def test_orders_without_session_are_never_found(site, order, prefix, session):
    answer = site.fcgi.get(f"{prefix}/sessions/{session}?fulfillment_url={URL}")
    assert answer.status in (400, 404)
    assert order not in answer.body.decode()


@pytest.mark.parametrize("session", ["s3cr3t", "''", "NULL", "null", "{}", '""', " ", "%20", "\\"])
def test_other_sessions_do_not_find_them(site, order, session):
    for instance in (None, "default"):
        assert_error(site.http.ask(session, URL, instance=instance), 404, 2038)


def test_an_order_that_is_given_a_session(site, merchant, order):
    session = new_session()
    waiting = site.http.later(session, URL, instance=None, timeout_ms=20000)
    merchant.sql(f"UPDATE merchant_contract_terms SET session_id = '{session}' WHERE order_id = '{order}'")
    assert_order(waiting.result(), 200, order)
    assert_order(site.http.ask(session, URL, instance=None), 200, order)
    assert_order(site.http.ask(session, URL, instance="default"), 200, order)
    assert_error(site.http.ask(session, URL, instance="admin"), 404, 2000)
    assert_error(site.http.ask(session, URL + "/", instance=None), 404, 2038)
