# SPDX-License-Identifier: GPL-3.0-or-later
"""The merchant of a walk: the only writer of the tables, whose every commit goes into the timeline."""

import dataclasses
import threading
import time
import typing

from history import Order, now


class Key(typing.NamedTuple):
    """What a request asks about. An empty instance is that of the path without /instances/."""
    instance: str
    session: str
    url: str

    def __str__(self):
        return f"{self.session} at {self.instance or 'admin'}"


ORDER_COLUMNS = """order_serial, merchant_serial, order_id, claim_token, h_post_data, pay_deadline, creation_time,
                   contract_terms, session_id, fulfillment_url"""
CONTRACT_COLUMNS = """order_serial, merchant_serial, order_id, contract_terms, h_contract_terms, creation_time,
                      pay_deadline, refund_deadline, paid, wired, fulfillment_url, session_id, claim_token"""


@dataclasses.dataclass
class Deed:
    """One transaction at `at` seconds from the start; `orders` is the state of `key` after it."""
    at: float
    name: str
    key: Key
    order_id: str
    sql: str
    orders: tuple


def literal(text):
    return "'" + text.replace("'", "''") + "'"


# Each statement can be repeated without harm: whether a COMMIT whose connection broke has succeeded is not known.

def offer_sql(key, order):
    return f"""INSERT INTO merchant_orders ({ORDER_COLUMNS})
        SELECT {order.serial}, merchant_serial, {literal(order.order_id)}, substr(sha256(''), 1, 16), sha512(''),
               {order.creation + 86_400_000_000}, {order.creation}, '', {literal(key.session)}, {literal(key.url)}
          FROM merchant_instances WHERE merchant_id = {literal(key.instance or 'admin')} ON CONFLICT DO NOTHING;"""


def claim_sql(order, keep):
    remove = "" if keep else f"DELETE FROM merchant_orders WHERE order_id = {literal(order.order_id)};"
    return f"""INSERT INTO merchant_contract_terms ({CONTRACT_COLUMNS})
        SELECT order_serial, merchant_serial, order_id, contract_terms, sha512(order_id::bytea), creation_time,
               pay_deadline, 0, false, false, fulfillment_url, session_id, claim_token
          FROM merchant_orders WHERE order_id = {literal(order.order_id)} ON CONFLICT DO NOTHING; {remove}"""


def unclaim_sql(order):
    return f"""INSERT INTO merchant_orders ({ORDER_COLUMNS})
        SELECT order_serial, merchant_serial, order_id, claim_token, sha512(''), pay_deadline, creation_time,
               contract_terms, session_id, fulfillment_url
          FROM merchant_contract_terms WHERE order_id = {literal(order.order_id)} ON CONFLICT DO NOTHING;
        DELETE FROM merchant_contract_terms WHERE order_id = {literal(order.order_id)};"""


def pay_sql(order):
    return f"""{claim_sql(order, keep=False)}
        UPDATE merchant_contract_terms SET paid = true WHERE order_id = {literal(order.order_id)};"""


def drop_sql(order):
    return f"""DELETE FROM merchant_orders WHERE order_id = {literal(order.order_id)};
        DELETE FROM merchant_contract_terms WHERE order_id = {literal(order.order_id)};"""


class Merchant:
    """Makes up deeds that are possible one after the other, from a random.Random."""

    def __init__(self, random, keys, prefix, serial):
        self.random = random
        self.keys = keys
        self.prefix = prefix
        self.serial = serial
        self.creation = int(time.time() * 1_000_000)
        self.orders = {key: {} for key in keys}  # order id -> Order
        self.claimed = set()

    def deed(self, at):
        key = self.random.choice(self.keys)
        unpaid = [order for order in self.orders[key].values() if not order.paid]
        claimed = [order for order in unpaid if order.order_id in self.claimed]
        offered = [order for order in unpaid if order.order_id not in self.claimed]
        name = self.random.choices(["offer", "claim", "pay", "unclaim", "drop"], [4, 3, 4, 2, 1])[0]
        if not unpaid or name == "offer":
            return self._offer(at, key)
        if name == "claim" and offered:
            order = self.random.choice(offered)
            self.claimed.add(order.order_id)
            return self._deed(at, name, key, order, claim_sql(order, keep=self.random.random() < 0.5))
        if name == "unclaim" and claimed:
            order = self.random.choice(claimed)
            self.claimed.remove(order.order_id)
            return self._deed(at, name, key, order, unclaim_sql(order))
        order = self.random.choice(unpaid)
        if name == "drop":
            del self.orders[key][order.order_id]
            self.claimed.discard(order.order_id)
            return self._deed(at, name, key, order, drop_sql(order))
        self.orders[key][order.order_id] = dataclasses.replace(order, paid=True)
        self.claimed.discard(order.order_id)
        return self._deed(at, "pay", key, order, pay_sql(order))

    def _offer(self, at, key):
        self.serial += 1
        # Sometimes of the same microsecond as the one before, or older: the serial number, or the time, decides.
        self.creation += self.random.choice([0, 1, 1_000_000, 1_000_000, -5])
        order = Order(f"{self.prefix}order-{self.serial}", self.creation, self.serial)
        self.orders[key][order.order_id] = order
        return self._deed(at, "offer", key, order, offer_sql(key, order))

    def _deed(self, at, name, key, order, sql):
        return Deed(at, name, key, order.order_id, sql, tuple(self.orders[key].values()))


class Writer:
    """Does the deeds, each until it has succeeded, in a thread that lives as long as the walk."""

    def __init__(self, postgres, db, timeline):
        self.postgres = postgres
        self.db = db
        self.timeline = timeline
        self.session = None
        self.stopped = threading.Event()

    def run(self, deeds, begun):
        for deed in deeds:
            if self.stopped.wait(max(0, begun + deed.at - now())):
                return
            self.do(deed)

    def do(self, deed):
        sent = None
        while True:
            try:
                self._run(f"BEGIN; {deed.sql}")
                sent = sent or now()
                self._run("COMMIT")
                break
            except (RuntimeError, OSError):
                self.close()
                if self.stopped.wait(0.05):
                    return
        self.timeline.commit(deed.key, deed.orders, sent, now())
        self.timeline.counts[f"deed: {deed.name}"] += 1
        self.timeline.note(f"{deed.name} {deed.order_id} of {deed.key.session}, took {now() - sent:.3f} s")

    def _run(self, sql):
        if not self.session:
            self.session = self.postgres.session(self.db, quiet=True)
            self.session.run("SET search_path = merchant")
        self.session.run(sql)

    def close(self):
        if self.session:
            self.session.end()
        self.session = None
