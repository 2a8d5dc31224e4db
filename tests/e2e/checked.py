# SPDX-License-Identifier: GPL-3.0-or-later
"""The pool and nginx as the tests run them: their logs are read when their block ends."""

import contextlib
import pathlib
import re

from client import Fcgi, Http
from merchant import MARKER
from metrics import Samples
from processes import wait_until
from servers import LOG_LINE, Nginx, Pool, location, upstream


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

    def check_command_lines(self):
        """Every user can read those of all processes. A password that the pool was given is not in them."""
        for pid in [self.pid, *self.workers()]:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                line = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
                assert MARKER.encode() not in line, line

    def logged(self, pattern):
        return [line for line in self.log_lines() if re.search(pattern, line)]

    def wait_for_waiting(self, count):
        """Until as many requests wait for a payment, on all workers together."""
        wait_until(lambda: self.metrics()["waiting"] == count, what=f"{count} requests wait")

    def metrics(self):
        """The samples of the pool's metrics, straight from a worker."""
        return Samples(self.fcgi.get("/metrics", MERCHANT_SESSIONS_METRICS="1").body.decode())

    def __exit__(self, kind=None, *error):
        try:
            if kind is None and self.running():
                self.check_command_lines()
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
