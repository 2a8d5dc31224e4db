# SPDX-License-Identifier: GPL-3.0-or-later

import contextlib
import os
import pathlib
import re
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from client import Fcgi, Http  # noqa: E402
from merchant import MARKER, Merchant  # noqa: E402
from servers import ALLOW_ROOT, LOG_LINE, Nginx, Pool, Postgres, location, make_shop, upstream  # noqa: E402

# The environment of the caller has no say.
for name in [name for name in os.environ if name.startswith(("PG", "MERCHANT_SESSIONS_"))]:
    if name not in ("MERCHANT_SESSIONS_PROGRAM", "MERCHANT_SESSIONS_LOOKUP_PROBE"):
        del os.environ[name]
os.environ[ALLOW_ROOT] = "1"


class CheckedPool(Pool):
    """A pool whose log must be clean, and that must stop as it is asked to, when its block ends.

    A warning or an error is allowed only where the test has declared it with `expect`.
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.expected = []
        self.status = 0

    def expect(self, *patterns):
        self.expected += patterns

    def start(self):
        super().start()
        self.fcgi = Fcgi(self.connect_to)

    def check_log(self):
        text = "\n".join(self.log_lines())
        assert MARKER not in text, text
        for line in self.log_lines():
            form = LOG_LINE.fullmatch(line)
            assert form, f"not a line of the log: {line}\n{text}"
            if form[1] in ("warning", "error"):
                assert any(re.search(pattern, line) for pattern in self.expected), f"unexpected: {line}\n{text}"

    def logged(self, pattern):
        return [line for line in self.log_lines() if re.search(pattern, line)]

    def __exit__(self, kind=None, *error):
        try:
            if kind is None and self.running():
                assert self.stop() == self.status
            if kind is None:
                self.check_log()
        finally:
            super().__exit__(kind, *error)


class CheckedNginx(Nginx):
    """nginx whose error log must be empty when its block ends, unless `allow_errors` says otherwise."""

    allow_errors = False

    def __exit__(self, kind=None, *error):
        lines = self.log_lines()
        super().__exit__(kind, *error)
        assert kind or self.allow_errors or not lines, lines


class Site:
    """A pool behind nginx: `http` and `fcgi` ask it from either side."""

    def __init__(self, pool, nginx):
        self.pool = pool
        self.nginx = nginx
        self.http = Http(nginx.port)
        self.fcgi = pool.fcgi


@contextlib.contextmanager
def open_site(pool, http=None, server=None):
    with pool, CheckedNginx(http=http or upstream(pool.socket), server=server or location()) as nginx:
        yield Site(pool, nginx)


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
