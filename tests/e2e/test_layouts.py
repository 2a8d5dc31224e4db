# SPDX-License-Identifier: GPL-3.0-or-later
"""Each known layout of the database, and the instance of the path without /instances/ in it."""

import pytest

from checked import CheckedPool
from client import assert_error, assert_order
from layouts import LAYOUTS, ddl, make_merchant, options
from merchant import Merchant, new_session, new_url
from servers import ROLE, ROOT, read_statement


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request, postgres, program):
    """A merchant in each layout, and a pool for it."""
    merchant = make_merchant(postgres, request.param, **LAYOUTS[request.param])
    with CheckedPool(program, "--workers", "1", "--poll-interval", "100", *options(**LAYOUTS[request.param]),
                     database=conninfo(postgres, request.param)) as pool:
        yield merchant, pool


def conninfo(postgres, db):
    return postgres.conninfo(f"'{db}'")


def test_claimed_and_paid(layout):
    merchant, pool = layout
    session, url = new_session(), new_url()
    assert_error(pool.fcgi.ask(session, url), 404, 2038)
    order = merchant.contract(session, url)
    assert_order(pool.fcgi.ask(session, url), 202, order)
    waiting = pool.fcgi.later(session, url, timeout_ms=20000)
    merchant.pay(order)
    assert_order(waiting.result(), 200, order)


def test_a_wallet_gives_the_order_back_and_another_pays(layout):
    merchant, pool = layout
    if not merchant.offers_have_session:
        pytest.skip("an order of 2022 cannot be found before it is claimed")
    session, url = new_session(), new_url()
    order = merchant.offer(session, url)
    merchant.claim(order)
    waiting = pool.fcgi.later(session, url, timeout_ms=20000)
    merchant.unclaim(order)
    assert_order(pool.fcgi.ask(session, url, timeout_ms=300), 202, order)
    assert not waiting.done()
    merchant.claim(order)
    merchant.pay(order)
    assert_order(waiting.result(), 200, order)


def test_offered(layout):
    """Without a session in merchant_orders an offer cannot be found, and the request waits for the payment."""
    merchant, pool = layout
    session, url = new_session(), new_url()
    order = merchant.offer(session, url)
    answer = pool.fcgi.ask(session, url, timeout_ms=300)
    if merchant.offers_have_session:
        assert_order(answer, 202, order)
    else:
        assert_error(answer, 404, 2038)


def test_empty_sessions_are_never_found(layout):
    merchant, pool = layout
    url = new_url()
    merchant.contract("", url, paid=True)
    merchant.offer("", url)
    assert_error(pool.fcgi.get(f"/instances/shop/sessions/?fulfillment_url={url}"), 404, 21)
    assert_error(pool.fcgi.ask(new_session(), url), 404, 2038)


def test_default_is_served_without_prefix(layout):
    merchant, pool = layout
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, instance="default", paid=True)
    assert_order(pool.fcgi.ask(session, url, instance=None), 200, order)
    assert_order(pool.fcgi.ask(session, url, instance="default"), 200, order)
    assert_error(pool.fcgi.ask(session, url, instance="admin"), 404, 2000)


def test_admin_goes_before_default(postgres, start_pool):
    merchant = make_merchant(postgres, "admin and default", instances=("default", "admin"))
    pool = start_pool(database=conninfo(postgres, "admin and default"))
    session, url = new_session(), new_url()
    of_default = merchant.contract(session, url, instance="default", paid=True)
    assert_error(pool.fcgi.ask(session, url, instance=None), 404, 2038)
    of_admin = merchant.contract(session, url, instance="admin")
    assert_order(pool.fcgi.ask(session, url, instance=None), 202, of_admin)
    assert_order(pool.fcgi.ask(session, url, instance="default"), 200, of_default)


def test_admin_that_comes_later(postgres, start_pool):
    """An upgrade of the merchant renames the instance while the pool runs."""
    merchant = make_merchant(postgres, "renamed", instances=("default",))
    pool = start_pool(database=conninfo(postgres, "renamed"))
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, instance="default", paid=True)
    assert_order(pool.fcgi.ask(session, url, instance=None), 200, order)
    merchant.sql("UPDATE merchant_instances SET merchant_id = 'admin'")
    assert_order(pool.fcgi.ask(session, url, instance=None), 200, order)
    assert_error(pool.fcgi.ask(session, url, instance="default"), 404, 2000)


def test_neither_admin_nor_default(postgres, start_pool):
    merchant = make_merchant(postgres, "only shops", instances=("shop",))
    pool = start_pool(database=conninfo(postgres, "only shops"))
    session, url = new_session(), new_url()
    merchant.contract(session, url, paid=True)
    answer = pool.fcgi.ask(session, url, instance=None, timeout_ms=5000)
    assert_error(answer, 404, 2000)
    assert answer.seconds < 1


def test_schema_merchant_goes_before_public(postgres, start_pool):
    merchant = make_merchant(postgres, "two schemas", instances=("shop",))
    postgres.psql(ddl(schema="public"), "two schemas")
    postgres.psql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO \"merchant-sessions\"", "two schemas")
    old = Merchant(postgres, "two schemas", "public")
    old.instance("shop")
    pool = start_pool(database=conninfo(postgres, "two schemas"))
    session, url = new_session(), new_url()
    old.contract(session, url, paid=True)
    assert_error(pool.fcgi.ask(session, url), 404, 2038)
    order = merchant.contract(session, url)
    assert_order(pool.fcgi.ask(session, url), 202, order)


def test_instances_in_schema_merchant_go_before_old_tables_in_public(postgres, start_pool):
    merchant = make_merchant(postgres, "left over", instances=("shop",), naming="m{serial}")
    postgres.psql(ddl(schema="public"), "left over")
    merchant.grant()
    pool = start_pool(database=conninfo(postgres, "left over"))
    pool.expect("no rule|several rules")
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    assert_order(pool.fcgi.ask(session, url), 200, order)


def test_search_path_of_the_role_has_no_say(postgres, start_pool):
    merchant = make_merchant(postgres, "decoys", instances=("shop",))
    postgres.psql(ddl(schema="decoy"), "decoys")
    postgres.psql("""GRANT USAGE ON SCHEMA decoy TO "merchant-sessions";
                     GRANT SELECT ON ALL TABLES IN SCHEMA decoy TO "merchant-sessions";
                     ALTER ROLE "merchant-sessions" IN DATABASE decoys SET search_path = decoy""", "decoys")
    pool = start_pool(database=conninfo(postgres, "decoys"))
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    assert_order(pool.fcgi.ask(session, url), 200, order)


def test_a_column_that_comes_later_is_not_in_the_way(postgres, start_pool):
    """Migrations add columns to tables that are in use."""
    merchant = make_merchant(postgres, "migrated", instances=("shop",), offers_have_session=False)
    pool = start_pool(database=conninfo(postgres, "migrated"))
    pool.expect("plan|statement|lookup")
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    assert_order(pool.fcgi.ask(session, url), 200, order)
    merchant.sql("""ALTER TABLE merchant_orders ADD session_id text NOT NULL DEFAULT '', ADD fulfillment_url text;
                    ALTER TABLE merchant_contract_terms ALTER order_id TYPE varchar""")
    postgres.psql_file(ROOT / "sql/role.sql", "migrated")
    assert_order(pool.fcgi.ask(session, url), 200, order)


@pytest.mark.parametrize("naming", [None, "m{serial}"], ids=["one schema", "a schema each"])
@pytest.mark.parametrize("table,layout", [("merchant_contract_terms", dict(index=False)),
                                          ("merchant_orders", dict(offers_index=False))])
def test_without_an_index(postgres, start_pool, table, layout, naming):
    """The answers are slow but right, and the log says so."""
    db = f"no index of {table} {naming}"
    merchant = make_merchant(postgres, db, instances=("shop",), naming=naming, **layout)
    pool = start_pool(database=conninfo(postgres, db))
    pool.expect(f"{table}.*index|index.*{table}")
    session, url = new_session(), new_url()
    offered = merchant.offer(session, url)
    assert_order(pool.fcgi.ask(session, url), 202, offered)
    paid = merchant.contract(session, url, paid=True)
    assert_order(pool.fcgi.ask(session, url), 200, paid)
    assert pool.logged("index")


@pytest.mark.parametrize("layout", [dict(), dict(schema="public"), dict(naming="m{serial}"),
                                    dict(naming="m{serial}", serial=False), dict(offers_have_session=False)],
                         ids=["2023", "public", "2026", "2026 without serial", "2022"])
def test_the_script_for_the_index_on_offers(postgres, start_pool, layout):
    """The script may be run again, finds the tables by itself, and leaves those of 2022 alone."""
    db = f"no index on offers {layout}".translate(str.maketrans("", "", "{}'"))[:60]
    merchant = make_merchant(postgres, db, instances=("shop", "cafe"), offers_index=False, **layout)
    for _ in range(2):
        postgres.psql_file(ROOT / "sql/orders-index.sql", db)
    pool = start_pool(database=conninfo(postgres, db))
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    assert_order(pool.fcgi.ask(session, url), 200, order)
    assert not pool.logged("no index")


@pytest.mark.parametrize("layout", [dict(), dict(naming="m{serial}")], ids=["2023", "2026"])
def test_the_role_may_read_the_columns_of_a_lookup_alone(postgres, layout):
    """sql/role.sql and sql/columns.sql each have a list of them."""
    db = f"columns {layout}".translate(str.maketrans("", "", "{}'"))
    make_merchant(postgres, db, instances=("shop",), **layout)
    granted = postgres.psql(f"""SELECT DISTINCT table_name, column_name FROM information_schema.column_privileges
                                WHERE grantee = '{ROLE}' AND privilege_type = 'SELECT' ORDER BY 1, 2""", db)
    wanted = postgres.psql(f"WITH {read_statement('columns.sql')} SELECT tab, col FROM wanted ORDER BY 1, 2", db)
    assert granted == wanted


def test_a_read_only_database(postgres, start_pool):
    """A read replica is read-only, too."""
    merchant = make_merchant(postgres, "replica", instances=("shop",))
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    postgres.psql("ALTER DATABASE replica SET default_transaction_read_only = on")
    assert_order(start_pool(database=conninfo(postgres, "replica")).fcgi.ask(session, url), 200, order)


def test_another_encoding_is_refused(postgres, start_pool):
    """Such a database cannot hold every session id. Merchants' databases are UTF-8."""
    postgres.psql("CREATE DATABASE latin WITH ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    postgres.psql(ddl(), "latin")
    postgres.psql_file(ROOT / "sql/role.sql", "latin")
    pool = start_pool("--db-timeout", "300", database=conninfo(postgres, "latin"))
    pool.expect("LATIN1")
    assert_error(pool.fcgi.ask(new_session(), new_url()), 500, 53)
    assert pool.logged("(error|warning): .*LATIN1")
