# SPDX-License-Identifier: GPL-3.0-or-later
"""--check: a line for each thing, which is ok, worth a note, or not ok, and an exit status."""

import dataclasses
import os
import re
import subprocess

import pytest

from layouts import ddl, make_merchant, put_view_before_contracts
from merchant import MARKER
from servers import ROLE, ROOT, Postgres, Standby, make_shop

CONTRACTS_INDEX = "merchant_contract_terms_by_merchant_session_and_fulfillment"
OFFERS_INDEX = "merchant_orders_by_merchant_session_and_fulfillment"
TOPICS = ["configuration", "sandbox", "descriptors", "server", "pooler", "layout", "lookup", "claimed orders",
          "unclaimed orders", "changes", "role", "patches"]
SCREEN = 24


@dataclasses.dataclass
class Checked:
    status: int
    lines: list

    def about(self, topic):
        """The lines about a topic, each with its verdict."""
        return [f"{verdict}: {text}" for verdict, about, text in self.lines if about == topic]


@pytest.fixture
def check(program):
    """Run --check, and read its lines."""
    def run(database, *options, prefix=(), **env):
        done = subprocess.run([*prefix, program, "--check", "--database", database, *options],
                              env={**os.environ, **env}, capture_output=True, text=True, timeout=20)
        assert done.stderr == ""
        assert MARKER not in done.stdout
        lines = [re.fullmatch(r"(ok|note|not ok) +([a-z ]+): (.*)", line) for line in done.stdout.splitlines()]
        assert all(lines) and len(lines) <= SCREEN, done.stdout
        checked = Checked(done.returncode, [line.groups() for line in lines])
        assert checked.status == any(verdict == "not ok" for verdict, _, _ in checked.lines), done.stdout
        return checked
    return run


def assert_line(checked, topic, pattern):
    assert [line for line in checked.about(topic) if re.match(pattern, line)], checked.lines


def conninfo(postgres, db):
    return postgres.conninfo(f"'{db}'")


@pytest.fixture
def new_merchant(request, postgres):
    """A merchant in a database of its own, in any layout; returned with its conninfo."""
    def make(**layout):
        merchant = make_merchant(postgres, request.node.name[:60], **layout)
        return merchant, conninfo(postgres, merchant.db)
    return make


# All is well

def test_each_topic_has_a_line(check, database):
    checked = check(database)
    assert checked.status == 0
    assert [about for _, about, _ in checked.lines] == TOPICS
    assert {verdict for verdict, about, _ in checked.lines if about != "patches"} == {"ok"}


def test_it_needs_no_socket_and_serves_nobody(check, database, tmp_path):
    assert check(database, "-l", str(tmp_path / "socket")).status == 0
    assert not (tmp_path / "socket").exists()


def test_each_statement_is_run(check, postgres, new_merchant):
    merchant, database = new_merchant()
    merchant.sql(f"ALTER DATABASE \"{merchant.db}\" SET log_statement = 'all'")
    assert check(database).status == 0
    for statement in ("merchant_sessions_lookup", "merchant_sessions_poll", "merchant_sessions_changes"):
        assert [line for line in postgres.log_lines() if f"execute {statement}" in line]


def test_only_instances_with_a_prefix_are_served(check, new_merchant):
    _, database = new_merchant(instances=("shop",))
    assert_line(check(database), "lookup", "ok: works; no instance admin or default")


# This host

def test_sandbox(check, database):
    assert_line(check(database), "sandbox", "ok: new privileges off, core files off, writing and starting files off")
    assert_line(check(database, "--no-sandbox"), "sandbox", "note: off, by --no-sandbox")


@pytest.mark.parametrize("limit,line", [("300", r"note: enough for 242 waiting requests a worker, not for --max-waiting 1000; .*"
                                                r"ulimit -Hn\), which is 300$"),
                                        ("1200", "ok: enough for 1000 waiting requests a worker$")])
def test_descriptors(check, database, limit, line):
    checked = check(database, "--max-waiting", "1000", prefix=["prlimit", f"--nofile=100:{limit}", "--"])
    assert_line(checked, "descriptors", line)


# The server

def test_a_server_that_is_away(check):
    checked = check(f"host=/nowhere password={MARKER}", "--db-timeout", "500")
    assert_line(checked, "database", "not ok: .*/nowhere")


def test_a_server_that_hangs(check):
    with Postgres() as hanging:
        shop = make_shop(hanging, "shop")
        hanging.pause()
        assert_line(check(shop, "--db-timeout", "300"), "database", "not ok: no answer within 300 ms")


def test_a_host_that_hangs_is_passed_over(check, postgres, database):
    with Postgres() as hanging:
        hanging.pause()
        hosts = f"host={hanging.directory},{postgres.directory} port={hanging.port},{postgres.port}"
        checked = check(f"{hosts} dbname=shop user={ROLE}", "--db-timeout", "300")
    assert checked.status == 0
    assert_line(checked, "server", f"ok: PostgreSQL .*, primary, at {postgres.directory} port {postgres.port}, database shop, encoding UTF8")


def test_a_standby(check):
    with Postgres() as primary:
        make_shop(primary, "shop")
        with Standby(primary) as standby:
            checked = check(standby.conninfo("shop"))
    assert checked.status == 0
    assert_line(checked, "server", "ok: PostgreSQL .*, standby, at ")


# The role

@pytest.mark.parametrize("grant,line", [
    ("GRANT INSERT ON merchant_orders TO {role}", "may change merchant.merchant_orders$"),
    ("GRANT UPDATE (paid) ON merchant_contract_terms TO {role}", "may change merchant.merchant_contract_terms$"),
    ("GRANT SELECT ON merchant_contract_terms TO PUBLIC", "may read all of merchant.merchant_contract_terms$"),
    ("GRANT SELECT (claim_token) ON merchant_orders TO {role}", "may read merchant.merchant_orders.claim_token$"),
    ("ALTER TABLE merchant_orders OWNER TO {role}", "owns merchant.merchant_orders$"),
    ("GRANT CREATE ON SCHEMA merchant TO {role}", "may create in schema merchant$"),
    ("GRANT pg_monitor TO {role}", "is a member of pg_monitor, "),
    ("ALTER ROLE {role} CREATEDB", "may create databases$"),
    ("GRANT SELECT (claim_token, h_post_data, pay_deadline, contract_terms) ON merchant_orders TO {role};"
     "GRANT INSERT ON merchant_orders, merchant_contract_terms TO {role}",
     "may change merchant.merchant_contract_terms, may change merchant.merchant_orders, .* and 1 more$"),
])
def test_rights_that_no_lookup_needs(check, postgres, new_merchant, grant, line):
    merchant, _ = new_merchant()
    role = f"other-{merchant.db}"[:60]
    postgres.psql_file(ROOT / "sql/role.sql", merchant.db, role=role)
    database = postgres.conninfo(f"'{merchant.db}'", user=f"'{role}'")
    assert_line(check(database), "role", "ok: other-.* may read the columns of a lookup, and no more$")
    merchant.sql(grant.format(role=f'"{role}"'))
    checked = check(database)
    assert checked.status == 0
    assert_line(checked, "role", f"note: other-.* has rights that no lookup needs: {line}")


def test_row_level_security(check, postgres, new_merchant):
    """Policies could hide paid orders from the role: it needs BYPASSRLS then, and only then."""
    merchant, _ = new_merchant()
    role = f"police-{merchant.db}"[:60]
    postgres.psql_file(ROOT / "sql/role.sql", merchant.db, role=role)
    database = postgres.conninfo(f"'{merchant.db}'", user=f"'{role}'")
    merchant.sql("ALTER TABLE merchant_contract_terms ENABLE ROW LEVEL SECURITY")
    assert_line(check(database), "database", "not ok: .*row-level security policy .*merchant_contract_terms")
    merchant.sql(f'ALTER ROLE "{role}" BYPASSRLS')
    checked = check(database)
    assert_line(checked, "lookup", "ok: works$")
    assert_line(checked, "role", "ok: ")
    merchant.sql("ALTER TABLE merchant_contract_terms DISABLE ROW LEVEL SECURITY")
    assert_line(check(database), "role", "note: .* has rights that no lookup needs: ignores row-level security$")


def test_a_superuser(check, postgres):
    assert_line(check(postgres.conninfo("shop", user="postgres")), "role",
                "note: postgres has rights that no lookup needs: is a superuser$")


def test_patches(check, postgres, new_merchant):
    merchant, database = new_merchant()
    assert_line(check(database), "patches", "note: not known")
    merchant.sql("CREATE SCHEMA _v; CREATE TABLE _v.patches (patch_name text);"
                 "INSERT INTO _v.patches VALUES ('merchant-0001'), ('merchant-0002'), ('zzz')")
    merchant.grant()
    checked = check(database)
    assert_line(checked, "patches", "ok: up to merchant-0002$")
    assert_line(checked, "role", "ok: ")


def test_a_collation_that_has_changed(check, postgres):
    """As after an upgrade of the operating system. ICU's collations have versions on every machine."""
    if int(postgres.psql("SHOW server_version_num")) < 150000:
        pytest.skip("the server does not know the version")
    postgres.psql("CREATE DATABASE \"to-collate\" TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en' ENCODING 'UTF8'")
    postgres.psql(ddl(), "to-collate")
    postgres.psql_file(ROOT / "sql/role.sql", "to-collate")
    database = postgres.conninfo("to-collate")
    assert check(database).about("collation") == []
    postgres.psql("UPDATE pg_database SET datcollversion = '1' WHERE datname = 'to-collate'")
    checked = check(database)
    assert_line(checked, "collation", "not ok: .* for version 1 ")
    mend = checked.about("collation")[0].partition("; ")[2]
    assert mend.startswith("REINDEX ")
    for statement in mend.split("; "):
        postgres.psql(statement, "to-collate")
    assert check(database).about("collation") == []
    assert_line(checked, "lookup", "ok: ")


# The tables

@pytest.mark.parametrize("broken,name", [("DROP TABLE merchant_contract_terms", "merchant_contract_terms"),
                                         ("ALTER TABLE merchant_contract_terms DROP paid", "paid is not there"),
                                         ('REVOKE SELECT (merchant_id) ON merchant_instances FROM "merchant-sessions"',
                                          "merchant_instances.merchant_id may not be read by this role")])
def test_a_database_that_will_not_do(check, new_merchant, broken, name):
    merchant, database = new_merchant()
    merchant.sql(broken)
    assert_line(check(database), "database", f"not ok: .*{name}")


INDEXED = "ok: found by an index$"
CREATE = r"CREATE INDEX CONCURRENTLY ON merchant\.merchant_contract_terms \(merchant_serial, fulfillment_url, session_id\)$"
CONTRACTS_UNINDEXED = "not ok: merchant_contract_terms has no index for the lookup, which reads it as a whole; make one: " + CREATE
OFFERS_UNINDEXED = "note: merchant_orders has no index for the lookup; see sql/orders-index.sql$"
OFFERS_NOT_FOUND = "note: not found by session"


@pytest.mark.parametrize("layout,contracts,offers", [
    (dict(index=False), CONTRACTS_UNINDEXED, OFFERS_UNINDEXED),
    (dict(offers_index=False), INDEXED, OFFERS_UNINDEXED),
    (dict(offers_have_session=False), INDEXED, OFFERS_NOT_FOUND)], ids=["contracts", "offers", "2022"])
def test_a_missing_index(check, new_merchant, layout, contracts, offers):
    """The index on merchant_orders is optional."""
    merchant, database = new_merchant(**layout)
    if contracts != INDEXED:
        merchant.sql(f"DROP INDEX {OFFERS_INDEX}")
    checked = check(database)
    assert_line(checked, "claimed orders", contracts)
    assert_line(checked, "unclaimed orders", offers)
    assert_line(checked, "changes", "ok: detected$")
    assert_line(checked, "lookup", "ok: works$")


def test_the_statement_makes_the_index(check, new_merchant):
    merchant, database = new_merchant(index=False)
    line, = check(database).about("claimed orders")
    merchant.sql(line.partition("make one: ")[2])
    assert_line(check(database), "claimed orders", INDEXED)


@pytest.mark.parametrize("columns", ["merchant_serial, fulfillment_url, session_id text_pattern_ops",
                                     "merchant_serial, fulfillment_url COLLATE \"POSIX\", session_id"], ids=["class", "collation"])
def test_an_index_that_cannot_be_used(check, new_merchant, columns):
    """The index has the columns, but in another order: the server says that it does not use it."""
    merchant, database = new_merchant(index=False)
    merchant.sql(f"CREATE INDEX ON merchant_contract_terms ({columns})")
    assert_line(check(database), "claimed orders", CONTRACTS_UNINDEXED)


def test_a_view(check, new_merchant):
    """The server finds the orders by the table's index all the same."""
    merchant, database = new_merchant()
    put_view_before_contracts(merchant)
    checked = check(database)
    assert_line(checked, "changes", "note: cannot be detected")
    assert_line(checked, "claimed orders", INDEXED)


def test_a_foreign_table(check, postgres, new_merchant):
    merchant, database = new_merchant()
    merchant.sql(f"""
        ALTER TABLE merchant_contract_terms RENAME TO contracts;
        CREATE EXTENSION postgres_fdw;
        CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw
            OPTIONS (host '{postgres.directory}', port '{postgres.port}', dbname '{merchant.db}');
        CREATE USER MAPPING FOR PUBLIC SERVER far OPTIONS (user 'postgres', password_required 'false');
        CREATE FOREIGN TABLE merchant_contract_terms (order_serial bigint, merchant_serial bigint, order_id text,
            creation_time bigint, paid boolean, fulfillment_url text, session_id text)
            SERVER far OPTIONS (schema_name 'merchant', table_name 'contracts')""")
    merchant.grant()
    assert_line(check(database), "claimed orders", "note: another server finds them")


def test_a_locked_table(check, postgres, new_merchant):
    merchant, database = new_merchant()
    with postgres.session(merchant.db) as other:
        other.run("BEGIN; LOCK TABLE merchant.merchant_contract_terms")
        checked = check(database, "--db-timeout", "300")
    assert_line(checked, "database", "not ok: (no answer within 300 ms|canceling statement)")


def test_a_locked_table_of_an_instance(check, postgres, new_merchant):
    merchant, database = new_merchant(naming="m{serial}", instances=("shop",))
    with postgres.session(merchant.db) as other:
        other.run("BEGIN; LOCK TABLE m1.merchant_contract_terms")
        checked = check(database, "--db-timeout", "300")
    assert_line(checked, "lookup", "not ok: fails: the instance cannot be asked$")
    assert_line(checked, "claimed orders", "note: how they are found is not known$")


# A schema for each instance

def test_instances(check, new_merchant):
    _, database = new_merchant(naming="m{serial}", instances=("admin", "shop"))
    checked = check(database)
    assert checked.status == 0
    assert_line(checked, "layout", 'ok: schema merchant, a schema for each instance, named "m{serial}", found by itself$')
    assert_line(checked, "instances", "ok: 2$")
    assert_line(checked, "claimed orders", INDEXED)
    assert_line(checked, "unclaimed orders", INDEXED)
    assert_line(checked, "role", "ok: ")


def test_instances_without_an_index(check, new_merchant):
    merchant, database = new_merchant(naming="m{serial}", serial=False, instances=("admin", "shop"))
    merchant.sql(f"DROP INDEX {CONTRACTS_INDEX}; DROP INDEX {OFFERS_INDEX}")
    checked = check(database)
    assert_line(checked, "claimed orders", r"not ok: .*ON SCHEMA.merchant_contract_terms \(fulfillment_url, session_id\): shop$")
    assert_line(checked, "unclaimed orders", "note: merchant_orders has no index for the lookup; .*: shop$")


def test_names_cannot_steer_a_terminal(check, new_merchant):
    merchant, database = new_merchant(naming="m{serial}", instances=("admin", "shop"))
    merchant.sql("UPDATE merchant_instances SET merchant_id = E'evil\\x1b[2J' WHERE merchant_id = 'shop'")
    merchant.sql(f'ALTER SCHEMA "m2" RENAME TO away')
    checked = check(database, "--instance-schema", "m{serial}")
    assert_line(checked, "instances", r"not ok: a schema that is not there, .*: evil\?\[2J$")
