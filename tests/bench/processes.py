# SPDX-License-Identifier: GPL-3.0-or-later
"""What processes have used, from /proc."""

import os
import pathlib

from servers import children

TICKS = os.sysconf("SC_CLK_TCK")


def tree(pid):
    yield pid
    for child in children(pid):
        yield from tree(child)


def cpu_seconds(pid):
    """Of a process, its living descendants and those that have ended and been waited for."""
    return sum(_ticks(member) for member in tree(pid)) / TICKS


def _ticks(pid):
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # utime, stime, cutime, cstime
    return sum(map(int, stat.rpartition(")")[2].split()[11:15]))


class Cpu:
    """The CPU seconds that servers use from now on, each server's processes together."""

    def __init__(self, **servers):
        self.pids = {name: server.process.pid for name, server in servers.items()}
        self.before = self._now()

    def _now(self):
        return {name: cpu_seconds(pid) for name, pid in self.pids.items()}

    def seconds(self):
        return {name: now - self.before[name] for name, now in self._now().items()}


class Running:
    """The CPU seconds that some processes use from now on, without their children. By schedstat, which counts
    nanoseconds: a tick is a per cent of a core for a second."""

    def __init__(self, pids):
        self.pids = pids
        self.before = self._now()

    def _now(self):
        threads = (thread for pid in self.pids for thread in pathlib.Path(f"/proc/{pid}/task").iterdir())
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9

    def seconds(self):
        return self._now() - self.before


def own_bytes(pid):
    """Memory of a process that it shares with no other and no file."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no RssAnon for {pid}")


def resident_bytes(pid):
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no Rss for {pid}")


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))
