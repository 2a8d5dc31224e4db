# SPDX-License-Identifier: GPL-3.0-or-later

import contextlib
import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from checked import CheckedPool, open_site  # noqa: E402
from merchant import Merchant  # noqa: E402
from servers import ALLOW_ROOT, Postgres, make_shop  # noqa: E402

# The environment of the caller has no say.
for name in [name for name in os.environ if name.startswith(("PG", "MERCHANT_SESSIONS_"))]:
    if name not in ("MERCHANT_SESSIONS_PROGRAM", "MERCHANT_SESSIONS_LOOKUP_PROBE", "MERCHANT_SESSIONS_MUTATE"):
        del os.environ[name]
os.environ[ALLOW_ROOT] = "1"


@pytest.fixture(scope="session")
def program():
    path = os.environ.get("MERCHANT_SESSIONS_PROGRAM")
    assert path, "MERCHANT_SESSIONS_PROGRAM must name the program to test"
    return path


@pytest.fixture(scope="session")
def lookup_probe():
    """The program of lookup_probe.c."""
    path = os.environ.get("MERCHANT_SESSIONS_LOOKUP_PROBE")
    if not path:
        pytest.skip("MERCHANT_SESSIONS_LOOKUP_PROBE does not name the probe")
    return path


@pytest.fixture(scope="session")
def postgres():
    with Postgres() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def database(postgres):
    """The conninfo of the example shop."""
    return make_shop(postgres, "shop")


@pytest.fixture(scope="session")
def merchant(postgres, database):
    return Merchant(postgres, "shop")


@pytest.fixture(scope="module")
def site(program, database):
    """The pool as most operators run it, behind the shipped nginx configuration."""
    with open_site(CheckedPool(program, "--workers", "2", database=database, by="spawn-fcgi")) as opened:
        yield opened


@pytest.fixture
def start_pool(program, database):
    """Start a pool of one worker for this test alone: start_pool("--poll-interval", "50", …)."""
    with contextlib.ExitStack() as stack:
        def enter(*options, workers=1, **more):
            pool = CheckedPool(program, "--workers", str(workers), *options, **{"database": database, **more})
            return stack.enter_context(pool)
        yield enter


@pytest.fixture
def start_site(program, database):
    """The same with nginx before it."""
    with contextlib.ExitStack() as stack:
        def enter(*options, workers=1, **more):
            pool = CheckedPool(program, "--workers", str(workers), *options, **{"database": database, **more})
            return stack.enter_context(open_site(pool))
        yield enter
