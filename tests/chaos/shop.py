# SPDX-License-Identifier: GPL-3.0-or-later
"""The merchant of a walk: the only writer of the tables, whose every commit goes into the timeline."""

import collections
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

    def __init__(self, random, prefix, serial):
        self.random = random
        self.prefix = prefix
        self.serial = serial
        self.creation = int(time.time() * 1_000_000)
        self.orders = collections.defaultdict(dict)  # key -> order id -> Order
        self.claimed = set()

    WEIGHTS = {"offer": 3, "claim": 4, "unclaim": 3, "pay": 4, "drop": 1}

    def deed(self, at, keys):
        """One for any of these keys."""
        key = self.random.choice(keys)
        unpaid = [order for order in self.orders[key].values() if not order.paid]
        claimed = [order for order in unpaid if order.order_id in self.claimed]
        offered = [order for order in unpaid if order.order_id not in self.claimed]
        candidates = {"claim": offered, "unclaim": claimed, "pay": unpaid, "drop": unpaid}
        names = ["offer", *(name for name, orders in candidates.items() if orders)]
        name = self.random.choices(names, [self.WEIGHTS[name] for name in names])[0]
        order = self._new_order() if name == "offer" else self.random.choice(candidates[name])
        return self._do(at, name, key, order)

    def sale(self, key, moments):
        """An order is offered, claimed and paid, at these moments; with two of them it is not paid."""
        order = self._new_order()
        return [self._do(at, name, key, order) for at, name in zip(moments, ("offer", "claim", "pay"))]

    def _do(self, at, name, key, order):
        sql = getattr(self, f"_{name}")(key, order)
        return Deed(at, name, key, order.order_id, sql, tuple(self.orders[key].values()))

    def _new_order(self):
        self.serial += 1
        # Sometimes of the same microsecond as the one before, or older: the serial number, or the time, decides.
        self.creation += self.random.choice([0, 1, 1_000_000, 1_000_000, -5])
        return Order(f"{self.prefix}order-{self.serial}", self.creation, self.serial)

    def _offer(self, key, order):
        self.orders[key][order.order_id] = order
        return offer_sql(key, order)

    def _claim(self, _, order):
        self.claimed.add(order.order_id)
        return claim_sql(order, keep=self.random.random() < 0.5)

    def _unclaim(self, _, order):
        self.claimed.remove(order.order_id)
        return unclaim_sql(order)

    def _pay(self, key, order):
        self.claimed.discard(order.order_id)
        self.orders[key][order.order_id] = dataclasses.replace(order, paid=True)
        return pay_sql(order)

    def _drop(self, key, order):
        self.claimed.discard(order.order_id)
        del self.orders[key][order.order_id]
        return drop_sql(order)


class Writer:
    """Does the deeds, each until it has succeeded, in a thread that lives as long as the walk."""

    def __init__(self, postgres, db, timeline, paths=None):
        """`paths` has the search_path of the orders of each instance, where that is not the schema merchant."""
        self.postgres = postgres
        self.db = db
        self.timeline = timeline
        self.paths = paths or {}
        self.session = None
        self.stopped = threading.Event()

    def run(self, deeds, begun):
        for deed in deeds:
            if self.stopped.wait(max(0, begun + deed.at - now())):
                return
            self.do(deed)

    def do(self, *deeds):
        """In one transaction."""
        sent = None
        while True:
            try:
                self._run("BEGIN; " + " ".join(self._placed(deed) for deed in deeds))
                sent = sent or now()
                self._run("COMMIT")
                break
            except (RuntimeError, OSError):
                self.close()
                if self.stopped.wait(0.05):
                    return
        for deed in deeds:
            self.timeline.commit(deed.key, deed.orders, sent, now())
            self.timeline.counts[f"deed: {deed.name}"] += 1
            self.timeline.note(f"{deed.name} {deed.order_id} of {deed.key.session}, took {now() - sent:.3f} s")

    def _placed(self, deed):
        return f"SET LOCAL search_path = {self.paths.get(deed.key.instance, 'merchant')}; {deed.sql}"

    def _run(self, sql):
        if not self.session:
            self.session = self.postgres.session(self.db, quiet=True)
        self.session.run(sql)

    def close(self):
        if self.session:
            self.session.end()
        self.session = None
