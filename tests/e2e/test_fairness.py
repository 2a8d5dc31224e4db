# SPDX-License-Identifier: GPL-3.0-or-later
"""Many requests for one instance do not delay those for another by more than a batch.

PostgreSQL logs each statement with its parameters, in the order in which it has run them: lookups are counted, not time.
"""

import contextlib
import re

import pytest

import fastcgi
from checked import CheckedPool
from client import target
from layouts import LAYOUTS, make_merchant
from merchant import new_session, new_url
from servers import Postgres

FLOOD = 2000  # requests, of which a batch holds 256
EXECUTED = re.compile(r"LOG:  execute merchant_sessions_\w+: .*?DETAIL:  parameters: ([^\n]*)", re.DOTALL)


@pytest.fixture(scope="module")
def postgres():
    with Postgres(log_statement="all") as cluster:
        yield cluster


@pytest.mark.parametrize("layout", ["2023", "2026"])
def test_newcomer_beside_a_flood(program, postgres, layout):
    """The database stands still while both come. Then it runs the lookup under way, and the newcomer is in the next one."""
    merchant = make_merchant(postgres, f"fairness {layout}", **LAYOUTS[layout])
    conninfo = postgres.conninfo(f"'fairness {layout}'")
    with CheckedPool(program, "--workers", "1", "--db-timeout", "60000", database=conninfo) as pool, \
            contextlib.ExitStack() as stack:
        session, url = new_session(), new_url()
        order = merchant.contract(session, url, paid=True)
        assert pool.fcgi.ask(session, url).status == 200
        seen = len(postgres.log.read_text())
        stack.callback(postgres.resume)
        postgres.pause()
        flood = [asking(stack, pool, "default", "nonsense") for _ in range(FLOOD)]
        newcomer = asking(stack, pool, "shop", session, url)
        # The program has accepted them in this order: it has read the newcomer's before this one.
        assert pool.fcgi.get("/").status == 404
        postgres.resume()
        assert order.encode() in newcomer.reply().body
        assert {connection.reply().status for connection in flood} == {404}
        lookups = EXECUTED.findall(postgres.log.read_text()[seen:])
    before = next(number for number, keys in enumerate(lookups) if session in keys)
    assert len([keys for keys in lookups if "nonsense" in keys]) > FLOOD / 256
    assert len([keys for keys in lookups[:before] if "nonsense" in keys]) <= 2


def asking(stack, pool, instance, session, url=None):
    """A connection on which a request has been sent."""
    connection = stack.enter_context(fastcgi.Connection(pool.connect_to, timeout=60))
    connection.send(fastcgi.request(fastcgi.variables(target(session, url or new_url(), instance))))
    return connection
