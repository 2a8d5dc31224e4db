# SPDX-License-Identifier: GPL-3.0-or-later
"""A lookup reads the index and never a whole table, whatever the planner believes of 100,000 contracts."""

import itertools
import json

import pytest

from client import assert_error, assert_order
from layouts import make_merchant
from merchant import MARKER, new_session, new_url
from processes import wait_until
from servers import read_statement

INDEX = "merchant_contract_terms_by_merchant_session_and_fulfillment"
OFFERS_INDEX = "merchant_orders_by_merchant_session_and_fulfillment"
COLUMNS = ("merchant_serial", "fulfillment_url", "session_id")
CONTRACTS = 100_000
PAYWALL = f"https://shop.example/{MARKER}/paywall"

# What the planner adds for a kind of node that is switched off is more than this.
PROHIBITIVE = 1e9

_database = itertools.count()


@pytest.fixture(scope="module", params=[*itertools.product((False, True), (True, False))],
                ids=lambda case: f"{'analysed' if case[0] else 'no statistics'}-{'2023' if case[1] else '2022'}")
def big(request, postgres):
    """100,000 contracts, with statistics or without, in the layout of 2023 or of 2022."""
    analysed, offers_have_session = request.param
    merchant = make_merchant(postgres, f"big{next(_database)}", instances=("admin", "shop", "other"),
                             offers_have_session=offers_have_session)
    fill(merchant)
    if analysed:
        merchant.sql("ANALYZE")
    yield merchant
    postgres.psql(f'DROP DATABASE "{merchant.db}" WITH (FORCE)')


def fill(merchant):
    """Half of the contracts are for articles, half for one paywall: the worst for an index that begins with the URL."""
    merchant.run_for("shop", f"""
        INSERT INTO merchant_contract_terms (order_serial, merchant_serial, order_id, contract_terms, h_contract_terms,
                    creation_time, pay_deadline, refund_deadline, paid, fulfillment_url, session_id, claim_token)
        SELECT {CONTRACTS} + n, merchant_serial, '{MARKER}-' || n, '', sha512(('contract ' || n)::bytea), n, n, 0, n % 3 > 0,
               CASE WHEN n % 2 = 0 THEN '{PAYWALL}' ELSE 'https://shop.example/{MARKER}/' || n END,
               CASE WHEN n % 5 = 0 THEN '' ELSE '{MARKER}-' || n END, substr(sha256(''), 1, 16)
          FROM generate_series(1, {CONTRACTS}) AS n, merchant_instances WHERE merchant_id = 'shop'""")


def fill_without_sessions(merchant):
    """A shop that uses no sessions: its statistics say that URL and session tell nothing apart."""
    fill(merchant)
    merchant.sql(f"UPDATE merchant_contract_terms SET fulfillment_url = '{PAYWALL}', session_id = '';"
                 "VACUUM FULL merchant_contract_terms")
    if merchant.offers_have_session:
        merchant.sql(f"""
            INSERT INTO merchant_orders (order_serial, merchant_serial, order_id, claim_token, h_post_data, pay_deadline, creation_time,
                        contract_terms, fulfillment_url)
            SELECT {2 * CONTRACTS} + n, merchant_serial, '{MARKER}-offer-' || n, substr(sha256(''), 1, 16), sha512(''), n, n, '', '{PAYWALL}'
              FROM generate_series(1, {CONTRACTS}) AS n, merchant_instances WHERE merchant_id = 'shop'""")


def statements(merchant):
    return ["lookup.sql" if merchant.offers_have_session else "lookup-claimed.sql", "poll.sql"]


def prepare(statement):
    """A session as the program has it, with its own SQL."""
    return f"""
        PREPARE settings (text, text, text, boolean) AS {read_statement("session.sql")};
        EXECUTE settings ('merchant', '3000', '0', false);
        PREPARE lookup (text[], text[], text[]) AS {read_statement(statement)};
    """


def keys(count):
    instances, urls, sessions = ["shop"] * count, [PAYWALL] * count, [f"{MARKER}-{n}" for n in range(count)]
    return ", ".join("ARRAY['" + "','".join(values) + "']" for values in (instances, urls, sessions))


def nodes(plan):
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def explain(run, count):
    """Plan nodes, from psql's output that has the answers of the settings before it."""
    output = run(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE lookup ({keys(count)});")
    plan, = json.loads(output[output.index("[\n"):])
    return list(nodes(plan["Plan"]))


def assert_index_is_used(found, table="merchant_contract_terms", index=INDEX):
    scans = [node for node in found if node.get("Relation Name") == table or node.get("Index Name") == index]
    assert scans
    for scan in scans:
        assert scan["Node Type"] in ("Index Scan", "Index Only Scan", "Bitmap Index Scan", "Bitmap Heap Scan"), scan
        if "Index Name" in scan:
            assert scan["Index Name"] == index, scan
            assert all(column in scan.get("Index Cond", "") for column in COLUMNS), scan
        assert scan.get("Rows Removed by Filter", 0) <= 1, scan
    assert any("Index Name" in scan for scan in scans)


@pytest.mark.parametrize("count", [1, 256])
def test_plan(big, count):
    for statement in statements(big):
        found = explain(lambda sql: big.sql(prepare(statement) + sql), count)
        assert_index_is_used(found)
        assert not [node for node in found if node["Node Type"] == "Seq Scan"]


@pytest.mark.parametrize("count", [1, 256])
def test_plan_without_an_index_on_offers(big, count):
    """All offers are read then, but once for all keys. In the layout of 2022 they are not read."""
    statement = "lookup-unindexed.sql" if big.offers_have_session else "lookup-claimed.sql"
    drop = f"BEGIN; DROP INDEX IF EXISTS {OFFERS_INDEX};"
    found = explain(lambda sql: big.sql(drop + prepare(statement) + sql), count)
    assert_index_is_used(found)
    loops = [node["Actual Loops"] for node in found if node.get("Relation Name") == "merchant_orders"]
    assert loops == ([1] if big.offers_have_session else [])


@pytest.mark.parametrize("offers_have_session", [True, False])
@pytest.mark.parametrize("analysed", [True, False])
def test_plan_where_no_session_is_used(postgres, analysed, offers_have_session):
    merchant = make_merchant(postgres, f"plain{next(_database)}", instances=("admin", "shop"),
                             offers_have_session=offers_have_session)
    fill_without_sessions(merchant)
    if analysed:
        merchant.sql("ANALYZE")
    for statement in statements(merchant):
        found = explain(lambda sql: merchant.sql(prepare(statement) + sql), 256)
        assert_index_is_used(found)
        if statement == "lookup.sql":
            assert_index_is_used(found, "merchant_orders", OFFERS_INDEX)


@pytest.mark.parametrize("offers_have_session", [True, False])
@pytest.mark.parametrize("analysed", [True, False])
def test_plan_made_when_the_tables_were_empty(postgres, analysed, offers_have_session):
    """A merchant starts with nothing, and the pool's connection lives on for months."""
    merchant = make_merchant(postgres, f"young{next(_database)}", instances=("admin", "shop"),
                             offers_have_session=offers_have_session)
    for statement in statements(merchant):
        merchant.sql("TRUNCATE merchant_contract_terms")
        if analysed:
            merchant.sql("ANALYZE")
        with postgres.session(merchant.db) as session:
            session.run("SET search_path = merchant;" + prepare(statement))
            session.run(f"EXECUTE lookup ({keys(1)})")
            fill(merchant)
            found = explain(session.run, 256)
            assert_index_is_used(found)
            assert not [node for node in found if node["Node Type"] == "Sort"]
            if statement == "lookup.sql":
                assert_index_is_used(found, "merchant_orders", OFFERS_INDEX)


@pytest.mark.parametrize("analysed", [True, False])
@pytest.mark.parametrize("statement", ["lookup.sql", "lookup-claimed.sql", "poll.sql"])
def test_any_other_index_costs_too_much(postgres, statement, analysed):
    """Whatever the statistics say: the planner would have to sort, which it is told not to do. Empty tables are the
    hardest case, since any index costs the same there."""
    merchant = make_merchant(postgres, f"young{next(_database)}", instances=("admin", "shop"))
    if analysed:
        merchant.sql("ANALYZE")
    drop = f"BEGIN; DROP INDEX {INDEX};"
    costs = [total_cost(lambda sql: merchant.sql(begin + prepare(statement) + sql)) for begin in ("", drop)]
    assert costs[0] < PROHIBITIVE < costs[1]


def total_cost(run):
    output = run(f"EXPLAIN (FORMAT JSON) EXECUTE lookup ({keys(1)});")
    plan, = json.loads(output[output.index("[\n"):])
    return plan["Plan"]["Total Cost"]


def counts(merchant):
    """Of merchant_contract_terms: scans of the whole table, scans of the index, rows that these have read."""
    return tuple(map(int, merchant.sql(f"""
        SELECT t.seq_scan, i.idx_scan, i.idx_tup_read FROM pg_stat_user_tables t JOIN pg_stat_user_indexes i USING (relid)
         WHERE t.relid = 'merchant_contract_terms'::regclass AND i.indexrelname = '{INDEX}'""").split("|")))


def assert_program_uses_the_index(merchant, pool):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    before = counts(merchant)
    for _ in range(20):
        assert_order(pool.fcgi.ask(session, url), 200, order)
        assert_error(pool.fcgi.ask(new_session(), PAYWALL), 404, 2038)
    assert_error(pool.fcgi.ask(new_session(), PAYWALL, timeout_ms=500), 404, 2038)
    pool.stop()  # a backend tells its counts at the latest when it ends
    wait_until(lambda: merchant.sql("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                                    "AND usename = 'merchant-sessions'") == "0", 5, "the end of the backend")
    whole, by_index, rows = (after - earlier for after, earlier in zip(counts(merchant), before))
    assert whole == 0
    assert by_index >= 40
    assert rows <= by_index


def test_the_program_uses_the_index(postgres, big, start_pool):
    assert_program_uses_the_index(big, start_pool("--poll-interval", "50", database=postgres.conninfo(big.db)))


@pytest.mark.parametrize("layout", [dict(), dict(naming="m{serial}"), dict(naming="m{serial}", serial=False)],
                         ids=["one schema", "a schema each", "a schema each without serial"])
def test_the_plan_of_an_empty_table_is_right(postgres, start_pool, layout):
    """The plan that was made for the empty tables is right for the full ones, too."""
    merchant = make_merchant(postgres, f"young{next(_database)}", instances=("admin", "shop"), **layout)
    merchant.sql("ANALYZE")
    pool = start_pool("--poll-interval", "50", database=postgres.conninfo(merchant.db))
    assert_error(pool.fcgi.ask(new_session(), PAYWALL, timeout_ms=200), 404, 2038)
    fill(merchant)
    assert_program_uses_the_index(merchant, pool)

