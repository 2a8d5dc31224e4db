# SPDX-License-Identifier: GPL-3.0-or-later
"""Many long polls at once: waiters.c, and what it has written so far."""

import pathlib
import tempfile
import time

import processes
from processes import start, wait_until

# The web server's connections to the pool must fit its backlog.
ARRIVALS_PER_SECOND = 4000
TIMEOUT_MS = 140_000


class Waiters:
    """Long polls for `parked` of the sessions, to be parked on one worker; after each answer one for the next session.

    `targets` are sent to in turn: ports of web servers, or the socket of a pool.
    """

    def __init__(self, build, sessions, targets, worker, parked=None):
        self.parked = parked or len(sessions)
        self._worker = worker
        self._descriptors = processes.descriptors(worker)
        self._directory = tempfile.TemporaryDirectory()
        directory = pathlib.Path(self._directory.name)
        paths = directory / "paths"
        paths.write_text("".join(session.path(TIMEOUT_MS) + "\n" for session in sessions))
        self._answers = directory / "answers"
        with open(self._answers, "wb") as output:
            self.process = start([build / "tests/bench/waiters", paths, ARRIVALS_PER_SECOND, self.parked, *targets],
                                 stdout=output)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self._directory.cleanup()

    def answers(self):
        """The number of a session → status, time in seconds by the monotonic clock."""
        written = self._answers.read_text().rpartition("\n")[0]
        lines = (line.split() for line in written.splitlines() if line != "sent")
        return {int(number): (int(status), int(time) / 1e9) for number, status, time in lines}

    def _all_accepted(self):
        return processes.descriptors(self._worker) >= self._descriptors + self.parked

    def wait_parked(self):
        """Until the worker holds a descriptor for each, and has looked up all of them at least once."""
        wait_until(lambda: "sent" in self._answers.read_text(), 60, "all long polls sent")
        wait_until(self._all_accepted, 30, "all long polls parked")
        time.sleep(2)
        if self.answers():
            raise RuntimeError(f"long polls were answered too early: {self.answers()}")
