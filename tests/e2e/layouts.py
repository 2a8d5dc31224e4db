# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of other merchants than the example shop, as changes to conf/example.sql: as of 2022, and variations."""

import re

from merchant import Merchant
from servers import ROOT, shipped

# The statements of the example that make the tables and indexes, without the schema's name.
EXAMPLE = [statement.replace("merchant.", "")
           for statement in re.findall(r"^CREATE (?:TABLE|INDEX)\b.*?;\n", shipped("conf/example.sql"), re.M | re.S)]
INSTANCES = "CREATE SCHEMA merchant; SET search_path = merchant;" + EXAMPLE[0]
SESSION_INDEX = "_by_merchant_session_and_fulfillment"


def changed(pattern, replacement, text, flags=0):
    """The text with each match replaced; there has to be one."""
    text, count = re.subn(pattern, replacement, text, flags=flags)
    assert count, f"conf/example.sql has nothing like {pattern}"
    return text


def without_index(table, text):
    """The statements without the index that serves the lookup in a table."""
    return changed(rf"CREATE INDEX {table}{SESSION_INDEX}\b.*?;", "", text, re.S)


def order_tables(index=True, offers_index=True, offers_have_session=True):
    """Statements for merchant_orders, merchant_contract_terms and their indexes in search_path."""
    orders, contracts = ("".join(statement for statement in EXAMPLE if re.match(rf"CREATE (TABLE|INDEX) {table}", statement))
                         for table in ("merchant_orders", "merchant_contract_terms"))
    if not (offers_index and offers_have_session):
        orders = without_index("merchant_orders", orders)
    if not offers_have_session:
        orders = changed(r"\n  , (fulfillment_url|session_id) .*", "", orders)
    if not index:
        contracts = without_index("merchant_contract_terms", contracts)
    return orders + contracts


def ddl(schema="merchant", text="text", **layout):
    """The three tables that a lookup reads, in one schema."""
    tables = changed(r"\btext\b", text, EXAMPLE[0] + order_tables(**layout))
    return f"CREATE SCHEMA IF NOT EXISTS {schema}; SET search_path = {schema};" + tables


def schema_ddl(serial, **layout):
    """The order tables of one instance, in a schema of its own, which is search_path; `serial` keeps merchant_serial."""
    tables = changed(r" REFERENCES merchant_instances ON DELETE CASCADE", "", order_tables(**layout))
    if not serial:
        tables = changed(r"\n  , merchant_serial .*", "", tables)
        tables = changed(r"\(merchant_serial, ", "(", tables)
    return tables


# A name that only an identifier that is quoted by the rules can hold.
HOSTILE = 'Ein "Laden" %s\'s; -- {id}'

LAYOUTS = {
    "2022": dict(text="varchar", offers_have_session=False),
    "2022 in public": dict(schema="public", text="varchar", offers_have_session=False),
    "2023": dict(),
    "2023 with varchar": dict(text="varchar"),
    "2023 in public": dict(schema="public"),
    "2026": dict(naming="merchant_instance_{serial}"),
    "2026 without serial": dict(naming="merchant-{serial}", serial=False),
    "2026 by id": dict(naming="m_{id}", serial=False),
    "2026 by pattern": dict(naming=HOSTILE, say=True),
}


def put_view_before_contracts(merchant):
    """Replace merchant_contract_terms by a view of the table."""
    merchant.sql("""ALTER TABLE merchant_contract_terms RENAME TO contracts;
                    CREATE VIEW merchant_contract_terms AS SELECT * FROM contracts""")
    merchant.postgres.psql_file(ROOT / "sql/role.sql", merchant.db)


def options(say=False, naming=None, **_):
    """The options that the program needs for this layout."""
    return ["--instance-schema", naming] if say else []


def make_merchant(postgres, db, instances=("default", "shop"), naming=None, say=False, **layout):
    """Create a database in that layout, which the program's role may read."""
    postgres.psql(f'CREATE DATABASE "{db}"')
    if naming:
        postgres.psql(INSTANCES, db)
        merchant = SplitMerchant(postgres, db, naming, **layout)
    else:
        postgres.psql(ddl(**layout), db)
        merchant = Merchant(postgres, db, layout.get("schema", "merchant"), layout.get("offers_have_session", True))
    for instance in instances:
        merchant.instance(instance)
    postgres.psql_file(ROOT / "sql/role.sql", db)
    return merchant


class SplitMerchant(Merchant):
    """The database of 2026: a schema for each instance, named by `naming`; `sql` runs in that of the shop."""

    def __init__(self, postgres, db, naming, serial=True, **layout):
        super().__init__(postgres, db, offers_have_session=layout.get("offers_have_session", True))
        self.naming = naming
        self.serial = serial
        self.layout = layout
        self._made = set()  # instances
        self._instances = {}  # order → its instance

    @property
    def search_path(self):
        return f"{self.schema_of('shop')}, merchant"

    def schema_of(self, instance):
        serial = self.postgres.psql(
            f"SELECT merchant_serial FROM merchant.merchant_instances WHERE merchant_id = '{instance}'", self.db)
        return '"' + self.naming.replace("{serial}", serial).replace("{id}", instance).replace('"', '""') + '"'

    def of(self, instance, text):
        """Run statements in the schema of an instance."""
        return self.postgres.psql(f"SET search_path = {self.schema_of(instance)}, merchant; {text}", self.db)

    def instance(self, name):
        if name in self._made:
            return
        self._made.add(name)
        super().instance(name)
        schema = self.schema_of(name)
        self.of(name, f"CREATE SCHEMA {schema};" + schema_ddl(self.serial, **self.layout))

    def delete_instance(self, name):
        self._made.remove(name)
        schema = self.schema_of(name)
        self.sql(f"""BEGIN;
                     DROP SCHEMA {schema} CASCADE;
                     DELETE FROM merchant_instances WHERE merchant_id = '{name}';
                     COMMIT""")

    def offer(self, session="", url=None, instance="shop", **more):
        return self._note(super().offer(session, url, instance, **more), instance)

    def contract(self, session="", url=None, instance="shop", **more):
        return self._note(super().contract(session, url, instance, **more), instance)

    def _note(self, order_id, instance):
        self._instances[order_id] = instance
        return order_id

    def _instance_of(self, order_id):
        return self._instances[order_id]

    def run_for(self, instance, text):
        self.of(instance, text if self.serial else text.replace("merchant_serial, ", ""))
