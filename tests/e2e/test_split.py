# SPDX-License-Identifier: GPL-3.0-or-later
"""The contract where each instance has a schema of its own: tests of other files, on a database of 2026."""

import pytest

from layouts import make_merchant
from test_answers import *  # noqa: F403
from test_waiting import (quick, test_another_order_is_paid, test_created_meanwhile_but_not_paid,  # noqa: F401
                          test_looked_up_a_last_time_at_the_deadline, test_many_wait_for_the_same_key,
                          test_other_sessions_keep_waiting, test_paid_at_once, test_paid_meanwhile,
                          test_unknown_then_offered_claimed_and_paid)
from test_wakeups import *  # noqa: F403

# The one is about another shop, the other ends the connections of `site` too.
del test_the_example_shop, test_a_reconnect_in_the_middle  # noqa: F821


@pytest.fixture(scope="module")
def merchant(postgres):
    """The database has all instances that the tests ask for from the start: new ones are served only after some seconds."""
    return make_merchant(postgres, "shop", instances=("admin", "shop", "bob@home.example", "sessions", "instances"),
                         naming="merchant_instance_{serial}")


@pytest.fixture(scope="module")
def database(merchant):
    return merchant.postgres.conninfo(merchant.db)
