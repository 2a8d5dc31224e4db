# SPDX-License-Identifier: GPL-3.0-or-later
"""The example shop in a cluster that a test file has for itself, whose fixture `postgres` it defines.

To be imported there: they stand in for the fixtures of conftest.py, which last for the whole session.
"""

import pytest

from merchant import Merchant
from servers import make_shop


@pytest.fixture(scope="module")
def database(postgres):
    """The conninfo of the example shop."""
    return make_shop(postgres, "shop")


@pytest.fixture(scope="module")
def merchant(postgres, database):
    return Merchant(postgres, "shop")
