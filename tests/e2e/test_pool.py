# SPDX-License-Identifier: GPL-3.0-or-later
"""Workers: how many, what happens when one dies, stopping and replacing them with requests waiting."""

import os
import pathlib
import resource
import signal
import socket
import stat
import subprocess
import threading
import time

import pytest

import fastcgi
from client import Http, assert_error, assert_order, target
from conftest import CheckedPool, open_site
from merchant import new_session, new_url
from servers import children, free_port, location, state, wait_until


def answers(pool):
    assert_error(pool.fcgi.ask(new_session(), new_url()), 404, 2038)


def wait_for_workers(pool, count, seconds=5):
    return wait_until(lambda: len(children(pool.pid)) == count and children(pool.pid), seconds, f"{count} workers")


# The listening socket

@pytest.mark.parametrize("by", ["listen", "spawn-fcgi", "descriptor"])
@pytest.mark.parametrize("workers", [0, 2])
def test_ways_to_get_a_socket(start_pool, by, workers):
    pool = start_pool(by=by, workers=workers)
    answers(pool)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_listening_on_tcp(start_pool, host):
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror:
        pytest.skip(f"{host} is no name of this machine")
    answers(start_pool(address=f"{host}:{free_port()}"))


def test_spawn_fcgi_that_forks(program, database, tmp_path):
    """As distributions start it; spawn-fcgi then throws the log away."""
    path, pid_file = tmp_path / "sock", tmp_path / "pid"
    subprocess.run(["spawn-fcgi", "-s", path, "-P", pid_file, "--", program, "--database", database, "-w", "1"],
                   check=True, stdout=subprocess.DEVNULL)
    pid = int(pid_file.read_text())
    try:
        with fastcgi.Connection(str(path)) as connection:
            connection.send(fastcgi.request(fastcgi.variables(target(new_session(), new_url()))))
            assert connection.reply().status == 404
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: state(pid) in ("Z", None), 2, "the end of the pool")


@pytest.mark.parametrize("option,mode", [((), 0o660), (("--socket-mode", "0600"), 0o600), (("--socket-mode", "666"), 0o666)])
def test_socket_mode(start_pool, option, mode):
    pool = start_pool(*option)
    assert stat.S_IMODE(os.stat(pool.socket).st_mode) == mode


def test_the_socket_of_a_pool_that_was_killed(program, database, start_pool, tmp_path):
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    process = subprocess.Popen([program, "--listen", path, "-d", database, "-w", "0"], stderr=subprocess.PIPE)
    try:
        def connects():
            try:
                return fastcgi.Connection(str(path))
            except ConnectionRefusedError:
                return None
        wait_until(connects, 5, "a socket that listens").close()
    finally:
        process.terminate()
        process.communicate(timeout=5)


# Workers

def test_number_of_workers(start_pool):
    pool = start_pool(workers=3)
    wait_for_workers(pool, 3)
    answers(pool)


def test_as_many_workers_as_processors(program, database):
    with CheckedPool(program, database=database) as pool:
        wait_for_workers(pool, len(os.sched_getaffinity(0)))


def test_no_workers(start_pool):
    pool = start_pool(workers=0)
    answers(pool)
    assert children(pool.pid) == []


def test_each_worker_serves(start_pool):
    """While one is stopped the others go on: they share the socket and nothing else."""
    pool = start_pool(workers=2)
    for pid in wait_for_workers(pool, 2):
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: state(pid) == "T", 2, "a worker that is stopped")
        try:
            answers(pool)
        finally:
            os.kill(pid, signal.SIGCONT)


def test_a_killed_worker_is_replaced_within_a_second(start_pool):
    pool = start_pool(workers=2)
    pool.expect("warning|error")
    before = wait_for_workers(pool, 2)
    os.kill(before[0], signal.SIGKILL)
    answers(pool)
    wait_until(lambda: before[0] not in pool.workers() and len(children(pool.pid)) == 2, 1, "a replacement")
    assert before[1] in pool.workers()
    answers(pool)
    assert any(str(before[0]) in line for line in pool.logged("warning|error")), pool.log_lines()


def test_the_requests_of_other_workers_survive(start_site, merchant):
    site = start_site("--poll-interval", "100", workers=2)
    site.pool.expect("warning|error")
    site.nginx.allow_errors = True
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    waiting = [site.http.later(session, url, timeout_ms=20000) for _ in range(8)]
    victim = site.pool.workers()[0]
    os.kill(victim, signal.SIGKILL)
    time.sleep(0.5)
    merchant.pay(order)
    for request in waiting:
        answer = request.result()
        assert answer.status in (200, 502)
    answers(site.pool)


def test_pauses_grow_while_workers_keep_dying(start_pool):
    pool = start_pool()
    pool.expect("warning|error")
    pauses = []
    for _ in range(5):
        pid, = wait_for_workers(pool, 1, seconds=15)
        died = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: children(pool.pid) not in ([], [pid]), 15, "a replacement")
        pauses.append(time.monotonic() - died)
    assert pauses[0] < 1
    assert pauses[-1] > 2 * pauses[0] and pauses[-1] > 0.2, pauses
    assert len(pool.logged("warning|error")) >= 5
    answers(pool)


# Stopping

@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("used", [False, True])
def test_stopping_while_idle(start_pool, workers, used):
    pool = start_pool(workers=workers)
    if used:
        answers(pool)
    wait_until(pool.log_lines, 5, "a pool that has started")
    assert pool.stop() == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_stopping_answers_all_that_wait(start_site, merchant, workers):
    site = start_site(workers=workers)
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    unpaid = [site.http.later(session, url, timeout_ms=30000) for _ in range(5)]
    unknown = [site.http.later(new_session(), new_url(), timeout_ms=30000) for _ in range(5)]
    assert site.pool.stop() == 0
    for request in unpaid:
        assert_order(request.result(1), 202, order)
    for request in unknown:
        assert_error(request.result(1), 404, 2038)


def test_stopping_closes_connections_that_are_kept(start_pool):
    pool = start_pool()
    with fastcgi.Connection(pool.connect_to) as connection:
        connection.send(fastcgi.request(fastcgi.variables(target(new_session(), new_url())), keep=True))
        assert connection.reply().status == 404
        assert pool.stop() == 0
        assert connection.read() is None


def test_stopping_with_half_a_request(start_pool):
    pool = start_pool()
    with fastcgi.Connection(pool.connect_to) as connection:
        connection.send(fastcgi.begin(), fastcgi.record(fastcgi.PARAMS, b"", length=100))
        time.sleep(0.1)
        assert pool.stop() == 0


def test_interrupt_stops_too(start_pool):
    pool = start_pool()
    answers(pool)
    assert pool.stop(signal.SIGINT) == 0


# Replacing

class Shoppers:
    """Threads that ask without a pause, and keep what was not as it should be."""

    def __init__(self, port, session, url, order, count=4):
        self.client, self.session, self.url, self.order = Http(port), session, url, order
        self.stopping = False
        self.asked, self.failures = 0, []
        self.threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def _ask(self):
        while not self.stopping:
            try:
                assert_order(self.client.ask(self.session, self.url), 200, self.order)
                self.asked += 1
            except (AssertionError, OSError) as failure:
                self.failures.append(failure)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping = True
        for thread in self.threads:
            thread.join()


@pytest.mark.parametrize("keepalive", [True, False])
def test_replacing_workers_fails_no_request(program, database, merchant, keepalive):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    server = location() if keepalive else location().replace("fastcgi_keep_conn on", "fastcgi_keep_conn off")
    pool = CheckedPool(program, "--workers", "2", database=database)
    with open_site(pool, server=server) as site:
        # A worker may close a kept connection just as nginx sends a request on it; nginx then logs that and asks again.
        site.nginx.allow_errors = keepalive
        with Shoppers(site.nginx.port, session, url, order) as shoppers:
            for _ in range(3):
                before = set(wait_for_workers(pool, 2))
                pool.send(signal.SIGHUP)
                wait_until(lambda: len(children(pool.pid)) == 2 and not before & set(children(pool.pid)), 10, "new workers")
            time.sleep(0.2)
        assert shoppers.asked > 100
        assert shoppers.failures == []


@pytest.mark.parametrize("workers", [1, 2])
def test_replacing_answers_what_waits(start_site, merchant, workers):
    site = start_site(workers=workers)
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    waiting = [site.http.later(session, url, timeout_ms=8000) for _ in range(6)]
    before = set(wait_for_workers(site.pool, workers))
    site.pool.send(signal.SIGHUP)
    wait_until(lambda: len(children(site.pool.pid)) == workers and not before & set(children(site.pool.pid)), 10, "new workers")
    for request in waiting:
        assert_order(request.result(), 202, order)
    answers(site.pool)


def test_one_worker_at_a_time_is_replaced(start_pool):
    pool = start_pool(workers=3)
    before = set(wait_for_workers(pool, 3))
    pool.send(signal.SIGHUP)
    fewest = 3
    deadline = time.monotonic() + 10
    while before & set(children(pool.pid)) and time.monotonic() < deadline:
        fewest = min(fewest, len(children(pool.pid)))
        time.sleep(0.005)
    assert not before & set(children(pool.pid))
    assert fewest >= 2
    wait_for_workers(pool, 3)
    answers(pool)


def test_many_replacements(start_pool):
    pool = start_pool(workers=1)
    for _ in range(5):
        before, = wait_for_workers(pool, 1)
        pool.send(signal.SIGHUP)
        wait_until(lambda: children(pool.pid) not in ([], [before]) and before not in children(pool.pid), 5, "a new worker")
        answers(pool)


# Descriptors

def test_out_of_descriptors(start_pool):
    """Accepting pauses; what waits is served, and afterwards everybody."""
    pool = start_pool("--poll-interval", "100")
    pool.expect("descriptor|EMFILE|open files")
    answers(pool)
    pid, = pool.workers()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (40, 40))
    crowd = [fastcgi.Connection(pool.connect_to) for _ in range(100)]
    for connection in crowd:
        connection.send(fastcgi.request(fastcgi.variables(target(new_session(), new_url(), "shop", 800))))
    time.sleep(0.5)
    assert busy(pid) < 0.5, "it spins"
    for connection in crowd:
        assert connection.reply().status == 404
        connection.close()
    assert pool.workers() == [pid]
    answers(pool)


def busy(pid, seconds=0.5):
    """The share of a processor that a process takes."""
    def ticks():
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    before = ticks()
    time.sleep(seconds)
    return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def test_idle_takes_no_processor_and_leaks_no_descriptor(start_pool):
    pool = start_pool()
    answers(pool)
    pid, = pool.workers()
    before = sorted(os.listdir(f"/proc/{pid}/fd"))
    for _ in range(50):
        answers(pool)
    wait_until(lambda: sorted(os.listdir(f"/proc/{pid}/fd")) == before, 2, "the same descriptors")
    assert busy(pid) < 0.1


# Under load

def test_wrk_through_nginx(start_site, merchant):
    session, url = new_session(), new_url()
    merchant.contract(session, url, paid=True)
    site = start_site(workers=2)
    done = subprocess.run(["wrk", "-t1", "-c64", "-d2s", f"http://127.0.0.1:{site.nginx.port}{target(session, url, 'shop')}"],
                          capture_output=True, text=True, check=True)
    assert "Non-2xx" not in done.stdout and "Socket errors" not in done.stdout, done.stdout
    lines = [line for line in site.pool.log_lines() if " info: " in line]
    assert len(lines) < 20, "the log speaks of requests"
