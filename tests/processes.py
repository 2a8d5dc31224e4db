# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes: how to start one and wait for it, and what /proc says of it."""

import contextlib
import glob
import os
import pathlib
import pwd
import secrets
import socket
import subprocess
import time

TICKS = os.sysconf("SC_CLK_TCK")


# Starting and waiting

def start(command, user=None, pdeathsig="TERM", **options):
    """Start a process that gets the signal `pdeathsig` when this one dies; as root it may run as another `user`."""
    # A process that a shell has started in the background ignores these two signals.
    prefix = ["env", "--default-signal=INT,QUIT", "setpriv", "--pdeathsig", pdeathsig]
    if user and os.geteuid() == 0:
        account = pwd.getpwnam(user)
        prefix += ["--reuid", str(account.pw_uid), "--regid", str(account.pw_gid), "--clear-groups"]
    return subprocess.Popen([*prefix, "--", *map(str, command)],
                            stdin=options.pop("stdin", subprocess.DEVNULL), **options)


def wait_until(condition, seconds=10, what="condition"):
    """Poll until `condition()` is true and return its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.02)


def free_port():
    """A TCP port of 127.0.0.1 that nobody listens on. No outgoing connection gets it either: it is below their range."""
    end = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = 10_000 + secrets.randbelow(end - 10_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def connects(address):
    """Whether somebody accepts connections at (host, port), or at the path of a Unix socket."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as probe:
        try:
            probe.connect(address)
            return True
        except OSError:
            return False


def account_exists(name):
    try:
        return bool(pwd.getpwnam(name))
    except KeyError:
        return False


def kill(pid, number):
    """Send a signal to a process, which may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


# Families

def children(pid):
    """Pids of the living children of a process."""
    try:
        listed = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [int(child) for child in listed if state(child) not in ("Z", None)]


def family(pid):
    """The pids of a process and of its living descendants."""
    yield pid
    for child in children(pid):
        yield from family(child)


def group(pgid):
    """Pids of the living members of a process group."""
    members = []
    for path in glob.glob("/proc/[0-9]*/stat"):
        fields = _stat(path)
        if fields and fields[0] != "Z" and int(fields[2]) == pgid:
            members.append(int(path.split("/")[2]))
    return members


def state(pid):
    """The state of a process as ps has it: R, S, T, Z …; None where there is none."""
    fields = _stat(f"/proc/{pid}/stat")
    return fields and fields[0]


def _stat(path):
    """The fields of a stat file after the command: state, parent, process group …; None if the process has ended."""
    try:
        with open(path, encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


# Processor time

def cpu_seconds(pid):
    """Of a process, its living descendants and those that have ended and been waited for."""
    return sum(_ticks(member) for member in family(pid)) / TICKS


def _ticks(pid):
    fields = _stat(f"/proc/{pid}/stat")
    # utime, stime, cutime, cstime
    return sum(map(int, fields[11:15])) if fields else 0


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
    """The CPU seconds that some processes use from now on, without their children. Read from schedstat, which counts
    nanoseconds: a tick is 1 % of a core over a second."""

    def __init__(self, pids):
        self.pids = pids
        self.before = self._now()

    def _now(self):
        threads = (thread for pid in self.pids for thread in pathlib.Path(f"/proc/{pid}/task").iterdir())
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9

    def seconds(self):
        return self._now() - self.before


# Memory, descriptors and other state

def status(pid, name):
    """The first word of a line of /proc/PID/status."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return line.split()[1]
    raise KeyError(name)


def status_bytes(pid, name):
    """A line of /proc/PID/status that is an amount of memory, in bytes: VmRSS, VmSize …"""
    return int(status(pid, name)) * 1024


def own_bytes(pid):
    """Memory of a process that it shares with no other process and no file."""
    return status_bytes(pid, "RssAnon")


def resident_bytes(pid):
    """Like VmRSS, but counted page by page: that one may lag behind."""
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no Rss for {pid}")


def descriptors(pid):
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def sockets(pid):
    """The sockets of a process: inode → descriptor."""
    found = {}
    for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            link = os.readlink(entry)
            if link.startswith("socket:["):
                found[link[len("socket:["):-1]] = int(entry.name)
    return found
