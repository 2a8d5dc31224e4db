# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens in a merchant's database: orders are offered, claimed and paid.

All session ids, URLs and order ids made here hold MARKER, which must not turn up in any log.
"""

import itertools
import time

from servers import ROOT

MARKER = "s3cr3t"

_serial = itertools.count(1000)


def new_session():
    return f"{MARKER}-session-{next(_serial)}"


def new_url():
    return f"https://shop.example/{MARKER}/articles/{next(_serial)}"


def _literal(text):
    return "NULL" if text is None else "'" + text.replace("'", "''") + "'"


def _microseconds(seconds_from_now):
    return int((time.time() + seconds_from_now) * 1_000_000)


class Merchant:
    """The tables in `schema` of a database; `offers_have_session` as since 2023."""

    def __init__(self, postgres, db, schema="merchant", offers_have_session=True):
        self.postgres = postgres
        self.db = db
        self.schema = schema
        self.offers_have_session = offers_have_session

    @property
    def search_path(self):
        return self.schema

    def sql(self, text):
        return self.postgres.psql(f"SET search_path = {self.search_path}; {text}", self.db)

    def grant(self):
        """Run sql/role.sql again."""
        self.postgres.psql_file(ROOT / "sql/role.sql", self.db)

    def instance(self, name):
        self.sql(f"""INSERT INTO merchant_instances (merchant_pub, merchant_id, merchant_name)
                     VALUES (sha256({_literal(name)}), {_literal(name)}, '') ON CONFLICT DO NOTHING""")

    def offer(self, session="", url=None, instance="shop", order_id=None, age=0, expires_in=86400):
        """An order that no wallet has claimed."""
        order_id, serial = self._name(order_id)
        columns, values = "", ""
        if self.offers_have_session:
            columns, values = ", session_id, fulfillment_url", f", {_literal(session)}, {_literal(url)}"
        self.run_for(instance, f"""
                     INSERT INTO merchant_orders (order_serial, merchant_serial, order_id, claim_token, h_post_data,
                            pay_deadline, creation_time, contract_terms{columns})
                     SELECT {serial}, merchant_serial, {_literal(order_id)}, substr(sha256(''), 1, 16), sha512(''),
                            {_microseconds(expires_in)}, {_microseconds(-age)}, ''{values}
                       FROM merchant_instances WHERE merchant_id = {_literal(instance)}""")
        return order_id

    def contract(self, session="", url=None, instance="shop", order_id=None, paid=False, age=0, expires_in=86400):
        """An order that a wallet has claimed."""
        order_id, serial = self._name(order_id)
        self.run_for(instance, f"""
                     INSERT INTO merchant_contract_terms (order_serial, merchant_serial, order_id, contract_terms,
                            h_contract_terms, creation_time, pay_deadline, refund_deadline, paid, wired,
                            fulfillment_url, session_id, claim_token)
                     SELECT {serial}, merchant_serial, {_literal(order_id)}, '', sha512('{serial}'),
                            {_microseconds(-age)}, {_microseconds(expires_in)}, 0, {paid}, false,
                            {_literal(url)}, {_literal(session)}, substr(sha256(''), 1, 16)
                       FROM merchant_instances WHERE merchant_id = {_literal(instance)}""")
        return order_id

    def claim(self, order_id):
        """A wallet takes an offer; the offer stays until it is paid."""
        self.run_for(self._instance_of(order_id), f"""
                     INSERT INTO merchant_contract_terms (order_serial, merchant_serial, order_id, contract_terms,
                            h_contract_terms, creation_time, pay_deadline, refund_deadline, paid, wired,
                            fulfillment_url, session_id, claim_token)
                     SELECT order_serial, merchant_serial, order_id, contract_terms, sha512(order_serial::text::bytea),
                            creation_time, pay_deadline, 0, false, false, fulfillment_url, session_id, claim_token
                       FROM merchant_orders WHERE order_id = {_literal(order_id)}""")

    def pay(self, order_id):
        self.run_for(self._instance_of(order_id), f"""
                     BEGIN;
                     UPDATE merchant_contract_terms SET paid = true WHERE order_id = {_literal(order_id)};
                     DELETE FROM merchant_orders WHERE order_id = {_literal(order_id)};
                     COMMIT""")

    def unclaim(self, order_id):
        """The wallet that has claimed the order gives it back; where the offer was kept, it is the same one."""
        self.run_for(self._instance_of(order_id),
                  f"DELETE FROM merchant_contract_terms WHERE order_id = {_literal(order_id)} AND NOT paid")

    def run_for(self, _instance, text):
        """Run a statement where the orders of the instance are; it names merchant_serial only in lists, not last."""
        self.sql(text)

    def _instance_of(self, _order_id):
        return "shop"

    def _name(self, order_id):
        serial = next(_serial)
        return order_id or f"{MARKER}-order-{serial}", serial
