# SPDX-License-Identifier: GPL-3.0-or-later
"""A schema for each instance: they come and go, one that cannot be asked does not disturb the others, --check tells."""

import concurrent.futures
import contextlib
import itertools
import os
import re
import signal
import subprocess
import time

import pytest

from client import assert_error, assert_order
from layouts import make_merchant, schema_ddl
from merchant import new_session, new_url
from processes import wait_until
from servers import Postgres

# A new instance is served, and a deleted one unknown, within ten seconds.
NEWS = 11
SLACK = 1.0
MANY = 350

_number = itertools.count()


@pytest.fixture(scope="module")
def postgres():
    """A cluster where nobody else commits: the list of instances is read again only after a change."""
    with Postgres(max_locks_per_transaction=1000) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def database(postgres):
    """For start_pool, where a test does not name its own."""
    return postgres.conninfo("postgres")


@pytest.fixture
def split(postgres):
    """Three instances in schemas that are named by their serials."""
    return make_merchant(postgres, f"split{next(_number)}", instances=("admin", "shop", "shop-2.x@y"),
                         naming="m-{serial}", serial=False)


def conninfo(merchant):
    return merchant.postgres.conninfo(f"'{merchant.db}'")


def is_unknown(pool, instance="shop"):
    """Whether the instance is served: it does not know this session."""
    answer = pool.fcgi.ask(new_session(), new_url(), instance=instance)
    return answer.status == 404 and answer.json["code"] == 2038


def is_no_instance(pool, instance="shop"):
    return pool.fcgi.ask(new_session(), new_url(), instance=instance).json["code"] == 2000


def assert_answers_paid(pool, merchant, instance):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, instance=instance, paid=True)
    assert_order(pool.fcgi.ask(session, url, instance=instance), 200, order)


@contextlib.contextmanager
def paused(pool):
    """Stop the worker, so that the requests of the block are in one batch, or in few."""
    worker, = pool.workers()
    os.kill(worker, signal.SIGSTOP)
    yield
    time.sleep(0.5)
    os.kill(worker, signal.SIGCONT)


@pytest.fixture(scope="module")
def many(postgres):
    """The instances i0, i1, …, without orders."""
    merchant = make_merchant(postgres, "many", instances=(), naming="m{serial}", serial=False)
    postgres.psql("INSERT INTO merchant.merchant_instances (merchant_pub, merchant_id, merchant_name) "
                  f"SELECT sha256(n::text::bytea), 'i' || n, '' FROM generate_series(0, {MANY - 1}) n", merchant.db)
    postgres.psql("".join(f"CREATE SCHEMA m{n + 1}; SET search_path = m{n + 1}; {schema_ddl(serial=False)}"
                          for n in range(MANY)), merchant.db)
    merchant.grant()
    return merchant


# Each has orders of its own

def test_each_has_its_own_orders(split, start_pool):
    pool = start_pool(database=conninfo(split))
    session, url = new_session(), new_url()
    orders = {name: split.contract(session, url, instance=name, paid=True) for name in ("shop", "shop-2.x@y")}
    for name, order in orders.items():
        assert_order(pool.fcgi.ask(session, url, instance=name), 200, order)
    assert_error(pool.fcgi.ask(session, url, instance="admin"), 404, 2038)
    assert_error(pool.fcgi.ask(session, url, instance=None), 404, 2038)
    assert_error(pool.fcgi.ask(session, url, instance="Shop"), 404, 2000)


def test_ids_and_names_that_have_to_be_quoted(postgres, start_pool):
    """The rule is found: all begin in the same way and end with the id."""
    shops = ("shop", "shop-2.x@y", "SHOP")
    merchant = make_merchant(postgres, "quoted", instances=shops, naming='M "%s"; -- {id}')
    pool = start_pool(database=conninfo(merchant))
    session, url = new_session(), new_url()
    orders = {name: merchant.contract(session, url, instance=name, paid=True) for name in shops}
    for name, order in orders.items():
        assert_order(pool.fcgi.ask(session, url, instance=name), 200, order)


def test_many_new_instances_do_not_break_the_connection(many, start_pool):
    """To prepare the statements of all of them takes longer than --db-timeout: they are prepared a few at a time."""
    pool = start_pool("--db-timeout", "120", database=conninfo(many))
    pool.expect("no answer within|it holds up|statement timeout")
    url = new_url()
    wait_until(lambda: is_unknown(pool, "i0"), what="the database is connected")

    def ask(n):
        return pool.fcgi.ask(new_session(), url, instance=f"i{n}").status

    def are_all_served(executor):
        with paused(pool):
            statuses = [executor.submit(ask, n) for n in range(MANY)]
        return {status.result() for status in statuses} == {404}

    with concurrent.futures.ThreadPoolExecutor(MANY) as executor:
        wait_until(lambda: are_all_served(executor), 30, "all instances served at once")


def test_many_instances_are_paid_at_once(many, start_pool):
    """More than a connection keeps statements for. Two requests wait for each; they get the order of their instance."""
    pool = start_pool(database=conninfo(many))
    session, url = new_session(), new_url()
    many.postgres.psql("".join(f"""
        INSERT INTO m{n + 1}.merchant_contract_terms (order_serial, order_id, contract_terms, h_contract_terms,
            creation_time, pay_deadline, refund_deadline, paid, wired, fulfillment_url, session_id, claim_token)
        VALUES (1, 'order-of-{n}', '', sha512(''),
            0, 0, 0, false, false, '{url}', '{session}', substr(sha256(''), 1, 16));"""
                               for n in range(MANY)), many.db)
    with concurrent.futures.ThreadPoolExecutor(2 * MANY) as executor:
        waiting = [(n, executor.submit(pool.fcgi.ask, session, url, instance=f"i{n}", timeout_ms=40000))
                   for n in range(MANY) for _ in range(2)]
        pool.wait_for_waiting(2 * MANY)
        assert not any(answer.done() for _, answer in waiting)
        many.postgres.psql("BEGIN;" + "".join(f"UPDATE m{n + 1}.merchant_contract_terms SET paid = true;"
                                              for n in range(MANY)) + "COMMIT", many.db)
        for n, answer in waiting:
            assert_order(answer.result(), 200, f"order-of-{n}")
        assert max(answer.result().seconds for _, answer in waiting) < 20


# Instances come and go

def test_a_new_instance_is_served(split, start_pool):
    pool = start_pool("--poll-interval", "100", database=conninfo(split))
    assert is_no_instance(pool, "late")
    # Its schema comes later than its row.
    split.sql("INSERT INTO merchant_instances (merchant_pub, merchant_id, merchant_name) "
              "VALUES (sha256('late'), 'late', '')")
    pool.expect('schema that is not there.*"m-4"', '"m-4": .*permission denied', "may not be read.*role.sql")
    time.sleep(1)  # asked about meanwhile
    split.instance("late")
    split.grant()
    wait_until(lambda: is_unknown(pool, "late"), NEWS, "the new instance served")
    assert_answers_paid(pool, split, "late")


@pytest.mark.parametrize("schema_too", [True, False])
def test_who_waits_for_a_deleted_instance_learns_it(split, start_pool, schema_too):
    pool = start_pool(database=conninfo(split))
    pool.expect('"m-2": .*does not exist', '"m-2": .*a statement failed')
    gone = pool.fcgi.later(new_session(), new_url(), timeout_ms=40000)
    session, url = new_session(), new_url()
    stays = pool.fcgi.later(session, url, instance="admin", timeout_ms=40000)
    pool.wait_for_waiting(2)
    if schema_too:
        split.delete_instance("shop")
    else:
        split.sql("DELETE FROM merchant_instances WHERE merchant_id = 'shop'")
    answer = gone.result()
    assert_error(answer, 404, 2000)
    assert answer.seconds < 1 + NEWS
    assert is_no_instance(pool)
    assert not stays.done()
    order = split.contract(session, url, instance="admin", paid=True)
    assert_order(stays.result(), 200, order)


def test_an_instance_that_is_made_again(postgres, start_pool):
    """The instance has the same id and schema as before, and another serial."""
    merchant = make_merchant(postgres, "again", instances=("admin", "shop"), naming="m_{id}")
    pool = start_pool(database=conninfo(merchant))
    pool.expect('"m_shop"')
    assert is_unknown(pool)
    merchant.delete_instance("shop")
    merchant.instance("shop")
    merchant.grant()
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    wait_until(lambda: pool.fcgi.ask(session, url).status == 200, NEWS, "the new instance's order found")
    assert_order(pool.fcgi.ask(session, url), 200, order)


def test_admin_and_default(postgres, start_pool):
    merchant = make_merchant(postgres, "renamed", instances=("default", "shop"), naming="m{serial}")
    pool = start_pool(database=conninfo(merchant))
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, instance="default", paid=True)
    assert_order(pool.fcgi.ask(session, url, instance=None), 200, order)
    merchant.sql("UPDATE merchant_instances SET merchant_id = 'admin' WHERE merchant_id = 'default'")
    wait_until(lambda: pool.fcgi.ask(session, url, instance="admin").status == 200, NEWS, "the new name")
    assert_order(pool.fcgi.ask(session, url, instance=None), 200, order)
    assert is_no_instance(pool, "default")


def test_without_any_instance(postgres, start_pool):
    merchant = make_merchant(postgres, "none", instances=(), naming="m{serial}")
    pool = start_pool(database=conninfo(merchant))
    assert_error(pool.fcgi.ask(new_session(), new_url(), instance=None), 404, 2000)
    merchant.instance("shop")
    merchant.grant()
    pool.expect("may not be read", "several rules|no rule")
    wait_until(lambda: is_unknown(pool), NEWS, "the first instance served")


def test_the_script_for_the_role_writes_only_what_is_missing(split):
    """A timer may run role.sql again and again."""
    before = split.sql("SELECT pg_current_snapshot()")
    split.grant()
    assert split.sql("SELECT pg_current_snapshot()") == before
    split.instance("late")
    split.grant()
    rights = split.of("late", """SELECT has_column_privilege('merchant-sessions', 'merchant_orders', name, 'SELECT')
                                   FROM unnest('{order_id,contract_terms}'::text[]) AS name""")
    assert rights.split() == ["t", "f"]


# One that cannot be asked

def test_without_rights_one_fails_alone(split, start_pool):
    split.of("shop", 'REVOKE ALL ON merchant_contract_terms FROM "merchant-sessions"')
    pool = start_pool("--db-timeout", "1000", database=conninfo(split))
    pool.expect("schema")
    for _ in range(3):
        assert_error(pool.fcgi.ask(new_session(), new_url()), 500, 53)
    assert_answers_paid(pool, split, "shop-2.x@y")
    assert len(pool.logged('warning: .*may not be read by this role; run sql/role.sql: "m-2"')) == 1
    split.grant()
    wait_until(lambda: is_unknown(pool), NEWS, "served again")
    assert len(pool.logged('info: .*can be asked: "m-2"')) == 1


def test_rights_that_are_taken_away_meanwhile(split, start_pool):
    pool = start_pool("--db-timeout", "1000", database=conninfo(split))
    pool.expect('"m-2"')
    waiting = pool.fcgi.later(new_session(), new_url(), timeout_ms=1500)
    split.of("shop", 'REVOKE ALL ON merchant_contract_terms FROM "merchant-sessions"')
    assert_error(pool.fcgi.ask(new_session(), new_url()), 500, 53)
    assert_answers_paid(pool, split, "shop-2.x@y")
    assert_error(waiting.result(), 500, 53)
    assert pool.logged('warning: .*schema "m-2": permission denied')
    split.grant()
    wait_until(lambda: is_unknown(pool), NEWS, "served again")


@pytest.mark.parametrize("break_it,why", [("DROP TABLE merchant_contract_terms", "not there, or has no"),
                                          ("ALTER TABLE merchant_contract_terms DROP paid", "lacks columns"),
                                          ("ALTER TABLE merchant_orders DROP creation_time", "lacks columns"),
                                          ("DROP TABLE merchant_orders", "lacks columns")])
def test_without_tables_or_columns_one_fails_alone(split, start_pool, break_it, why):
    split.of("shop", break_it)
    pool = start_pool("--db-timeout", "500", database=conninfo(split))
    pool.expect("schema")
    assert_error(pool.fcgi.ask(new_session(), new_url()), 500, 53)
    assert_answers_paid(pool, split, "shop-2.x@y")
    assert pool.logged(f'warning: .*{why}.*"m-2"')


def test_columns_that_come_later_are_not_in_the_way(split, start_pool):
    pool = start_pool(database=conninfo(split))
    pool.expect("cached plan|a statement failed")
    session, url = new_session(), new_url()
    order = split.contract(session, url, paid=True)
    assert_order(pool.fcgi.ask(session, url), 200, order)
    split.of("shop", "ALTER TABLE merchant_contract_terms ADD more text, ALTER order_id TYPE varchar")
    assert_order(pool.fcgi.ask(session, url), 200, order)


@contextlib.contextmanager
def locked(merchant, instances):
    with merchant.postgres.session(merchant.db) as session:
        for instance in instances:
            session.run(f"BEGIN; LOCK TABLE {merchant.schema_of(instance)}.merchant_contract_terms")
        yield


def test_a_short_lock_is_waited_for(split, start_pool):
    """ALTER TABLE takes this lock."""
    pool = start_pool(database=conninfo(split))
    assert is_unknown(pool)
    with locked(split, ["shop"]):
        stuck = pool.fcgi.later(new_session(), new_url())
        assert not stuck.done()
    assert_error(stuck.result(), 404, 2038)


def test_locked_ones_do_not_hold_up_the_others(postgres, start_pool):
    locked_ones = ["a", "b", "c"]
    merchant = make_merchant(postgres, "locked", instances=("shop", *locked_ones), naming="m{serial}", serial=False)
    pool = start_pool("-v", "--db-timeout", "1000", database=conninfo(merchant))
    pool.expect("lock timeout")
    assert all(is_unknown(pool, instance) for instance in ("shop", *locked_ones))
    with locked(merchant, locked_ones), concurrent.futures.ThreadPoolExecutor(6) as executor:
        end = time.monotonic() + 3

        def ask_until_the_end(instance):
            statuses = []
            while time.monotonic() < end:
                statuses.append(pool.fcgi.ask(new_session(), new_url(), instance=instance).status)
            return statuses

        stuck = [executor.submit(ask_until_the_end, instance) for instance in locked_ones * 2]
        good = ask_until_the_end("shop")
        assert set(good) == {404} and len(good) > 20
        assert {status for future in stuck for status in future.result()} == {500}
    for instance in locked_ones:
        wait_until(lambda: is_unknown(pool, instance), 5, "served again")
    # They were tried again after growing pauses, and each is in the log once.
    assert len(pool.logged("lock timeout")) < 3 * 9
    assert len(pool.logged("warning: .*lock timeout")) == 3
    assert not pool.logged("no answer within")


def make_slow(merchant, instance):
    merchant.of(instance, """ALTER TABLE merchant_contract_terms RENAME TO contracts;
                             CREATE VIEW merchant_contract_terms AS SELECT * FROM contracts
                              WHERE (SELECT pg_sleep(5) IS NOT NULL)""")


def test_slow_ones_are_tried_one_at_a_time(postgres, start_pool):
    """Each takes a quarter of --db-timeout. Once they are known, they do not take it all in the same batch."""
    slow_ones = ["a", "b", "c"]
    merchant = make_merchant(postgres, "slow", instances=("shop", *slow_ones), naming="m{serial}", serial=False)
    pool = start_pool("--db-timeout", "4000", database=conninfo(merchant))
    pool.expect("statement timeout")
    assert all(is_unknown(pool, instance) for instance in ("shop", *slow_ones))
    for instance in slow_ones:
        make_slow(merchant, instance)
    merchant.grant()
    with concurrent.futures.ThreadPoolExecutor(3) as executor:
        end = time.monotonic() + 8

        def ask_until_the_end(instance):
            while time.monotonic() < end:
                assert_error(pool.fcgi.ask(new_session(), new_url(), instance=instance), 500, 53)

        with paused(pool):
            stuck = [executor.submit(ask_until_the_end, instance) for instance in slow_ones]
        time.sleep(3.2)
        while time.monotonic() < end:
            answer = pool.fcgi.ask(new_session(), new_url())
            assert_error(answer, 404, 2038)
            assert answer.seconds < 1 + SLACK
            time.sleep(0.05)
        for future in stuck:
            future.result()


def test_more_slow_ones_than_a_batch_has_time_for(postgres, start_pool):
    """The connection is replaced once or twice, until the slow schemas are known."""
    slow_ones = ["a", "b", "c", "d", "e", "f"]
    merchant = make_merchant(postgres, "slower", instances=("shop", *slow_ones), naming="m{serial}", serial=False)
    pool = start_pool("-v", "--db-timeout", "1000", database=conninfo(merchant))
    pool.expect("statement timeout", "no answer within", "it holds up the others", "no index")
    assert all(is_unknown(pool, instance) for instance in ("shop", *slow_ones))
    for instance in slow_ones:
        make_slow(merchant, instance)
    merchant.grant()
    with paused(pool):
        stuck = [pool.fcgi.later(new_session(), new_url(), instance=instance) for instance in slow_ones]
    for future in stuck:
        assert_error(future.result(), 500, 53)
    wait_until(lambda: is_unknown(pool), 5, "served again")
    assert len(pool.logged("no answer within")) <= 2


def test_the_list_of_instances_is_locked(split, start_pool):
    """The known instances are served until the list can be read again."""
    pool = start_pool("-v", database=conninfo(split))
    pool.expect("list of instances cannot be read again")
    assert is_unknown(pool)
    with split.postgres.session(split.db) as session:
        session.run("BEGIN; LOCK TABLE merchant.merchant_instances")
        end = time.monotonic() + 4
        while time.monotonic() < end:
            answer = pool.fcgi.ask(new_session(), new_url())
            assert_error(answer, 404, 2038)
            assert answer.seconds < SLACK
            time.sleep(0.1)
    assert pool.logged("list of instances cannot be read again")


# The rule of the names

def test_no_rule_and_the_operators_word(postgres, start_pool):
    merchant = make_merchant(postgres, "no rule", instances=("shop", "cafe"), naming="x{serial}y")
    pool = start_pool("--db-timeout", "300", database=conninfo(merchant))
    pool.expect("no rule")
    assert_error(pool.fcgi.ask(new_session(), new_url()), 500, 53)
    assert pool.logged('warning: .*no rule.*"x1y" "x2y".*--instance-schema')
    assert_answers_paid(start_pool("--instance-schema", "x{serial}y", database=conninfo(merchant)), merchant, "cafe")


def test_several_rules(postgres, start_pool):
    """The serial of one instance is the id of another: a wrong guess would answer with the other's orders."""
    merchant = make_merchant(postgres, "several rules", instances=("2", "1"), naming="m{serial}")
    pool = start_pool("--db-timeout", "300", database=conninfo(merchant))
    pool.expect("several rules")
    assert_error(pool.fcgi.ask(new_session(), new_url(), instance="1"), 500, 53)
    assert pool.logged('warning: .*several rules.*"m1" "m2".*--instance-schema')


def test_one_schema_for_several_instances(postgres, start_pool):
    merchant = make_merchant(postgres, "shared", instances=("shop", "cafe"), naming="m{id}")
    merchant.sql('ALTER SCHEMA "mshop" RENAME TO "m"; ')
    pool = start_pool("--db-timeout", "300", "--instance-schema", "m{serial}",
                      database=conninfo(merchant))
    pool.expect("schema that")
    assert_error(pool.fcgi.ask(new_session(), new_url()), 500, 53)


# --check

def check(program, merchant, *options):
    done = subprocess.run([program, "--check", "--database", conninfo(merchant), *options],
                          capture_output=True, text=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) <= 24
    return done.returncode, done.stdout


def test_check_of_instances_that_can_be_looked_up(split, program):
    status, output = check(program, split)
    assert status == 0, output
    assert 'layout: schema merchant, a schema for each instance, named "m-{serial}", found by itself\n' in output
    assert re.search(r"^ok      instances: 3$", output, re.M)
    assert re.search(r"^ok      claimed orders: found by an index$", output, re.M)
    assert re.search(r"^ok      unclaimed orders: found by an index$", output, re.M)
    assert re.search(r"^ok      lookup: works$", output, re.M)
    status, output = check(program, split, "--instance-schema", "m-{serial}")
    assert status == 0, output
    assert 'named "m-{serial}", as --instance-schema says\n' in output


def test_check_of_instances_that_cannot(postgres, program):
    shops = [f"shop-{n:02}" for n in range(20)]
    merchant = make_merchant(postgres, "check", instances=("admin", *shops), naming="m{serial}")
    for shop in shops[:12]:
        merchant.of(shop, 'REVOKE ALL ON merchant_orders FROM "merchant-sessions"')
    merchant.of("shop-12", "DROP TABLE merchant_contract_terms")
    merchant.of("shop-13", "ALTER TABLE merchant_contract_terms DROP paid")
    merchant.of("shop-14", "DROP INDEX merchant_contract_terms_by_merchant_session_and_fulfillment")
    merchant.of("shop-15", "DROP INDEX merchant_orders_by_merchant_session_and_fulfillment")
    status, output = check(program, merchant)
    assert status == 1, output
    assert re.search(r"^not ok  .*may not be read .* run sql/role.sql: shop-00 .*shop-07 and 4 more$", output, re.M)
    assert re.search(r"^not ok  .*is not there, or has no merchant_contract_terms: shop-12$", output, re.M)
    assert re.search(r"^not ok  .*lacks columns that a lookup needs: shop-13$", output, re.M)
    assert re.search(r"^not ok  claimed orders: merchant_contract_terms has no index for the lookup, .*: shop-14$", output, re.M)
    assert re.search(r"^note    unclaimed orders: merchant_orders has no index for the lookup.*: shop-15$", output, re.M)
    assert re.search(r"^ok      lookup: works$", output, re.M)


def test_check_where_no_rule_fits(postgres, program):
    merchant = make_merchant(postgres, "check no rule", instances=("shop", "cafe"), naming="x{serial}y")
    status, output = check(program, merchant)
    assert status == 1
    assert re.search(r'^not ok  database: no rule .*"x1y" "x2y".*--instance-schema', output, re.M)
