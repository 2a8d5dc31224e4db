# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of the pool's processes, and of what the machine gives them: descriptors, memory, time, a place for the log."""

import contextlib
import fcntl
import os
import pathlib
import re
import resource
import signal
import subprocess
import time

from faults import Processes
from frame import WORKERS, Stage, fault, sleep
from history import SILENCE, Judge, Kind, Outcome, Rules, Span, now
from processes import children, state, wait_until
from servers import Pool

# Seconds within which a request that does not wait is answered while all is well for it.
FRESH = 1.0
# How long a frozen worker stays so: longer than --db-timeout.
FROZEN = 3.0
KILLED = tuple(Processes.LOGS["kill"])
SHORT = tuple(Processes.LOGS["short"])
LOST_LINES = "lines of the log that could not be written and are lost"
OUT_OF_MEMORY = (r"warning: out of memory", r"warning: database: .*memory")


# What only some rows ask of the answers. A check yields (time, violation).

def lost(asked):
    return asked.outcome is Outcome.CLOSED or asked.status == 502


def check_fresh(stage, everything):
    """Who does not wait is answered within a second."""
    for asked in everything:
        longest = FRESH + stage.timeline.stalled(asked.sent, asked.ended)
        if asked.wait == 0 and asked.outcome is Outcome.ANSWERED and asked.ended - asked.sent > longest:
            yield asked.ended, f"fresh, but answered after {asked.ended - asked.sent:.3f} s: {asked}"


def check_no_failure(stage, everything):
    """Not one request fails, whatever else the judge would excuse than a machine that did not run."""
    begin, end = stage.lasted
    for asked in everything:
        if begin <= asked.ended and asked.sent <= end and not stage.timeline.stalled(asked.opened, asked.ended) and (
                asked.status >= 500 or asked.outcome in (Outcome.CLOSED, Outcome.REFUSED, Outcome.SILENT)):
            yield asked.ended, f"failed: {asked}"


def check_fresh_beside_frozen(stage, everything):
    """A connection that is opened while a worker is frozen is for another worker. (One that nginx keeps may be the frozen one's.)"""
    for span in stage.timeline.spans[Kind.FROZEN]:
        yield from check_fresh(stage, [asked for asked in everything if not asked.nginx
                                       and span.begin + 0.1 <= asked.opened <= span.end])


def check_only_connections_of_killed(stage, everything):
    """A request is lost only if its own connection was one of a killed worker. nginx loses no more than it had connections to
    these. Whoever got an answer directly has had a worker that lived: for it nothing was wrong."""
    direct = {asked.socket for asked in everything if not asked.nginx}
    for asked in everything:
        if lost(asked) and not asked.nginx and asked.socket not in stage.cut and asked.sent - asked.opened < SILENCE:
            yield asked.ended, f"lost, but its worker was not killed: {asked}"
    through = sum(lost(asked) for asked in everything if asked.nginx)
    if through > len(stage.cut - direct):
        yield now(), f"{through} requests were lost through nginx, with {len(stage.cut - direct)} connections"
    strict = Judge(stage.timeline.without(Kind.KILLED), Rules(stage.db_timeout), everything)
    for asked in everything:
        if asked.outcome is Outcome.ANSWERED and not asked.nginx:
            yield from ((asked.ended, f"though its worker lived, {text}: {asked}") for text in strict.verdicts(asked))


# Signals

class Killed(Stage):
    times = 12

    def start(self):
        # The inodes of the sockets that were connected to killed workers.
        self.cut = set()
        super().start()

    def kill(self, pid):
        """It is stopped first, so that it is known who is connected to it."""
        with self.timeline.span(Kind.KILLED, Kind.STARTING), contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda: state(pid) in ("T", None), what="a stopped worker")
            self.cut |= peers_of(pid)
            os.kill(pid, signal.SIGKILL)


def peers_of(pid):
    """The inodes of the Unix sockets at the other ends of those of a process."""
    own = {re.sub(r"\D", "", link) for fd in os.scandir(f"/proc/{pid}/fd") if (link := os.readlink(fd.path)).startswith("socket:")}
    # The kernel lists sockets in pieces, and may leave one out when others come and go meanwhile.
    listed = [subprocess.run(["ss", "-xnH", "state", "established"], capture_output=True, text=True, check=True).stdout
              for _ in range(3)]
    # … local address, local inode, peer address, peer inode
    return {int(fields[-1]) for fields in map(str.split, "".join(listed).splitlines()) if fields[-3] in own}


@fault(stage=Killed, kinds=(), logs=KILLED, checks=(check_only_connections_of_killed,))
def workers_killed(stage):
    """SIGKILL of one worker each second, for two minutes."""
    end = now() + stage.period
    while now() < end:
        begun = now()
        stage.kill(min(stage.processes.serving()))
        sleep(max(0, begun + 1 - now()))


@fault(kinds=(), checks=(check_fresh_beside_frozen,))
def workers_frozen_in_turn(stage):
    """SIGSTOP of one worker for three seconds, and when it runs again of the other one."""
    for victim in range(WORKERS):
        stage.processes.freeze(FROZEN, victim)
        sleep(1)


@fault(kinds=(Kind.FROZEN,))
def workers_all_frozen(stage):
    """SIGSTOP of all workers for three seconds."""
    workers = stage.processes.serving()
    for number, seconds in (signal.SIGSTOP, FROZEN), (signal.SIGCONT, 1):
        for pid in workers:
            os.kill(pid, number)
        sleep(seconds)


class HungUp(Stage):
    times = 6


@fault(stage=HungUp, kinds=(Kind.LEAVING, Kind.STARTING), checks=(check_no_failure,))
def hung_up_often(stage):
    """SIGHUP twice a second, for a minute. No request fails."""
    before = stage.processes.serving()
    for _ in range(int(2 * stage.period)):
        stage.pool.send(signal.SIGHUP)
        sleep(0.5)
    wait_until(lambda: not set(before) & set(children(stage.pool.pid)), what="new workers")
    sleep(3)


class Crowded(Stage):
    waiting = 5000


@fault(stage=Crowded, kinds=())
def stopped_with_many_waiting(stage):
    """SIGTERM while 5,000 wait. All that were sent before are answered, within two seconds. Then the pool is started again."""
    stage.processes.stop(0.5)


@fault(kinds=(Kind.DOWN, Kind.LEAVING, Kind.STARTING))
def pool_killed(stage):
    """SIGKILL of the pool's first process. Its workers answer all that wait, and end; a new pool takes the socket over."""
    workers = stage.processes.serving()
    stage.pool.process.kill()
    stage.pool.process.wait()
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers), 2.5, "the end of the workers")
    stage.pool.start()


# What the machine gives

class FewDescriptors(Stage):
    """A worker has room for a quarter of those who would wait."""

    prefix = ("prlimit", "--nofile=300:300")
    times = 1

    def start(self):
        self.timeline.spans[Kind.SHORT].append(Span(now(), float("inf")))
        super().start()


@fault(stage=FewDescriptors, kinds=(), logs=SHORT, checks=(check_fresh,))
def descriptors_exhausted(stage):
    """There are descriptors for half of those who want to wait. Others are answered at once, within a second."""
    sleep(stage.period)


class LittleMemory(Stage):
    """From its start on a worker may take 128 KiB more of address space than it has then."""

    plain = True
    times = 1
    MORE = 128 * 1024

    def start(self):
        self.timeline.spans[Kind.SHORT].append(Span(now(), float("inf")))
        super().start()
        sleep(1)
        self.limited = self.processes.serving()
        for pid in self.limited:
            pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[0])
            size = pages * resource.getpagesize() + self.MORE
            resource.prlimit(pid, resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


def check_same_workers(stage, _):
    if sorted(stage.limited) != stage.left:
        yield now(), f"workers {sorted(stage.limited)} have become {stage.left}"


@fault(stage=LittleMemory, logs=OUT_OF_MEMORY, checks=(check_same_workers,),
       conceivable="^(500, |closed without an answer|502 without)")
def memory_exhausted(stage):
    """RLIMIT_AS leaves memory for few of those who want to wait. Others are refused with 500 at once, which the judge does not
    know as a reason. Where there is no memory for a connection or for the records of a request the connection is closed without
    an answer (502 from nginx): this is a limit of the program, not of the judge. No worker dies. Then there is memory again."""
    sleep(stage.period)
    stage.left = sorted(children(stage.pool.pid))
    for pid in stage.left:
        resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class FakedClock(Stage):
    """The program sees a wall clock that can be set, by Debian's faketime. It reads the time from a file, which a sandboxed worker
    could not open."""

    plain = True
    options = ("--no-sandbox",)

    def make_pool(self):
        pool = super().make_pool()
        self.clock = pool.directory / "clock"
        self.set(0)
        library, = pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
        pool.env |= {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(self.clock), "FAKETIME_NO_CACHE": "1",
                     "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        return pool

    def set(self, seconds):
        """Set it so much ahead of the true time, or back."""
        self.clock.write_text(f"{seconds:+d}\n")
        self.ahead = seconds

    def confirm(self):
        """Another process with the same environment sees the time that was set."""
        seen = int(subprocess.run(["date", "+%s"], env=self.pool.env, capture_output=True, check=True).stdout)
        assert abs(seen - time.time() - self.ahead) < 60, f"the clock was not set: {seen}"


@fault(stage=FakedClock, kinds=())
def clock_set(stage):
    """The wall clock is set an hour ahead, a day back, a year ahead, to 1970 and right again, each for two seconds."""
    for seconds in 3600, -86400, 365 * 86400, -int(time.time()) + 1000, 0:
        stage.set(seconds)
        stage.confirm()
        sleep(2)


# The log

class LogOnSmallDisk(Stage):
    """The log is on a small tmpfs, which only root can mount, and has a line for each connection."""

    options = ("--verbose",)

    def make_pool(self):
        pool = super().make_pool()
        self.disk = pool.directory / "log"
        self.disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", self.disk], check=True)
        self.stack.callback(subprocess.run, ["umount", "-l", self.disk], check=True)
        pool.log = self.disk / "pool.log"
        return pool


def check_lost_lines_told(stage, _):
    if not any(LOST_LINES in line for line in stage.log):
        yield now(), "the log does not tell that lines were lost"


@fault(stage=LogOnSmallDisk, kinds=(), logs=(LOST_LINES,), checks=(check_lost_lines_told,),
       conceivable="^in the log: (?!.*merchant-sessions.*merchant-sessions)")
def log_disk_full(stage):
    """The disk of the log is full, three times for two seconds, and has space again. A full disk cuts the last line that it takes;
    the next one begins on a line of its own."""
    for _ in range(3):
        filling = stage.disk / "filling"
        with contextlib.suppress(OSError), open(filling, "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        sleep(2)
        filling.unlink()
        sleep(1)


class PipedPool(Pool):
    """Its standard error is a pipe that is read only when read() is called."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)  # soon full
        os.set_blocking(self.reader, False)
        self.text = b""

    def _start(self, command, log, **options):
        return super()._start(command, self.writer, **options)

    def read(self):
        with contextlib.suppress(BlockingIOError):
            while self.reader is not None and (piece := os.read(self.reader, 65536)):
                self.text += piece

    def close_reader(self):
        self.read()
        os.close(self.reader)
        self.reader = None

    def log_lines(self):
        self.read()
        return self.text.decode(errors="replace").splitlines()

    def __exit__(self, *error):
        super().__exit__(*error)
        os.close(self.writer)
        if self.reader is not None:
            self.close_reader()


class PipedLog(Stage):
    options = ("--verbose",)
    pool_class = PipedPool
    times = 1


@fault(stage=PipedLog, kinds=(), logs=(LOST_LINES,), checks=(check_lost_lines_told,))
def log_not_read(stage):
    """The log is a pipe that nobody reads, and that has long been full. Then it is read."""
    sleep(stage.period)
    stage.pool.read()
    sleep(1)


@fault(stage=PipedLog, kinds=(), logs=(LOST_LINES, *KILLED))
def log_reader_gone(stage):
    """The log is a pipe whose reader has gone, and the pool has something to say too: a worker is killed."""
    stage.pool.close_reader()
    sleep(1)
    stage.processes.kill(0)
    sleep(stage.period)
