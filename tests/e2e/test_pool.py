# SPDX-License-Identifier: GPL-3.0-or-later
"""Workers: how many, what happens when one dies, stopping and replacing them with requests waiting."""

import contextlib
import os
import pwd
import re
import resource
import signal
import socket
import stat
import subprocess
import threading
import time

import pytest

import fastcgi
from checked import CheckedNginx, CheckedPool, open_site
from client import Fcgi, Http, assert_error, assert_order, target
from merchant import new_session, new_url
from processes import Running, children, connects, descriptors, free_port, start, state, wait_until
from servers import location, upstream


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


@pytest.mark.parametrize("workers", ["0", "1"])
def test_only_descriptor_0_is_open(program, database, tmp_path, workers):
    """As FastCGI 1.0, section 2.2, has it. A line of the log must not get into what is opened as descriptor 2."""
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        process = start(["sh", "-c", 'exec "$0" "$@" >&- 2>&-', program, "-v", "-w", workers, "-d", database], stdin=listening)
    try:
        for _ in range(3):
            assert_error(Fcgi(path).ask(new_session(), new_url()), 404, 2038)
        for pid in [process.pid, *children(process.pid)]:
            assert [os.readlink(f"/proc/{pid}/fd/{number}") for number in (1, 2)] == ["/dev/null"] * 2
    finally:
        process.terminate()
        assert process.wait(5) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_listening_on_tcp(start_pool, host):
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror:
        pytest.skip(f"{host} is no name of this machine")
    answers(start_pool(address=f"{host}:{free_port()}"))


def test_spawn_fcgi_that_forks(program, database, tmp_path):
    """Distributions start it without -n; spawn-fcgi then throws the log away."""
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
        wait_until(lambda: connects(str(path)), 5, "a socket that listens")
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


@pytest.mark.parametrize("by,workers,said", [("descriptor", 0, False), ("descriptor", 1, True), ("listen", 0, True)])
def test_a_process_that_a_manager_starts_on_demand_says_only_what_is_wrong(start_pool, by, workers, said):
    """There are many of them, with the log of the web server."""
    pool = start_pool(by=by, workers=workers)
    answers(pool)
    assert bool(pool.log_lines()) == said


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
    wait_until(lambda: site.pool.logged("killed by signal 9"), what="the line")
    merchant.pay(order)
    for request in waiting:
        answer = request.result()
        assert answer.status in (200, 502)
    answers(site.pool)


def test_all_workers_killed_each_second(start_pool):
    """Workers that are killed from outside are replaced without a pause, however often."""
    pool = start_pool(workers=2)
    pool.expect("killed by signal 9")
    for _ in range(4):
        before = wait_for_workers(pool, 2)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        answers(pool)
        assert time.monotonic() - killed < 1
        wait_for_workers(pool, 2, seconds=1)
        assert not set(before) & set(children(pool.pid))
        time.sleep(1)  # they survive their start
    assert len(pool.logged("killed by signal 9; replaced at once")) == 8


def limit_descriptors(pid, soft):
    """Set the soft limit and leave the hard one, so that it can be raised again by anybody. Return the old one."""
    old, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    return old


# What a worker that cannot start leaves in the log.
CANNOT_START = "Too many open files"


def test_workers_that_fail_at_their_start(start_pool):
    """The pauses between attempts grow, but while there is no worker there is an attempt each second."""
    pool = start_pool(workers=2)
    pool.expect(CANNOT_START, "ended with status 1 at its start; replaced after a pause", "killed by signal 9")
    answers(pool)
    enough = limit_descriptors(pool.pid, 4)
    for pid in wait_for_workers(pool, 2):
        os.kill(pid, signal.SIGKILL)
    time.sleep(6)  # attempts and pauses
    pauses = [int(re.search(r"at most (\d+) ms", line)[1]) for line in pool.logged("at its start")]
    assert pauses == sorted(pauses) and pauses[:4] == [100, 100, 200, 200], pauses
    # Two workers double 100 ms in less than two seconds up to 900; then there is one attempt each 0.9 s.
    assert 8 <= len(pauses) <= 16 and pauses[-1] > 1000, pauses
    limit_descriptors(pool.pid, enough)
    raised = time.monotonic()
    answers(pool)
    assert time.monotonic() - raised < 1.5


def test_a_crash_at_the_start_is_a_failure(start_pool):
    pool = start_pool()
    pool.expect("killed by signal 6")
    pid, = wait_for_workers(pool, 1)
    os.kill(pid, signal.SIGABRT)
    wait_until(lambda: pool.logged("killed by signal 6 at its start; replaced after a pause of at most 100 ms"), 2, "the line")
    answers(pool)
    # It has survived its start: no pause, and the count begins anew.
    pid, = wait_for_workers(pool, 1)
    time.sleep(1.2)
    os.kill(pid, signal.SIGABRT)
    wait_until(lambda: pool.logged("killed by signal 6; replaced at once"), 2, "the line")
    pid = wait_until(lambda: [other for other in children(pool.pid) if other != pid], 2, "a replacement")[0]
    os.kill(pid, signal.SIGABRT)
    wait_until(lambda: len(pool.logged("at most 100 ms")) == 2, 2, "the line")
    answers(pool)


def test_a_worker_that_is_asked_to_stop_is_replaced_at_once(start_pool):
    pool = start_pool()
    pool.expect("ended with status 0; replaced at once")
    answers(pool)
    pid, = wait_for_workers(pool, 1)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: children(pool.pid) not in ([], [pid]), 3, "a replacement")
    answers(pool)


def test_no_process_to_be_had(program, database, tmp_path):
    """fork() fails; the pool goes on trying, and serves a second after there is room."""
    user = pwd.getpwnam("nobody")
    tmp_path.chmod(0o777)
    if os.geteuid() != 0 or not reachable(program, user):
        pytest.skip("needs root, and a program that everybody can run")
    with socket.socket(socket.AF_UNIX) as listener, open(tmp_path / "log", "wb") as log:
        listener.bind(str(tmp_path / "sock"))
        listener.listen(64)
        process = start(["prlimit", "--nproc=1:", "--", program, "--workers", "2", "--database", database],
                        user="nobody", stdin=listener, stderr=log)
    try:
        text = lambda: (tmp_path / "log").read_text()
        wait_until(lambda: text().count("cannot start a worker") >= 4, 5, "attempts")
        assert children(process.pid) == []
        # Its own user may change it, and not every root.
        start(["prlimit", f"--pid={process.pid}", "--nproc=1000:"], user="nobody").wait(5)
        raised = time.monotonic()
        Fcgi(str(tmp_path / "sock")).ask(new_session(), new_url())
        assert time.monotonic() - raised < 1.5
    finally:
        process.terminate()
        assert process.wait(5) == 0


def reachable(program, user):
    return subprocess.run(["setpriv", "--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups",
                           "test", "-x", program]).returncode == 0


def test_a_program_that_cannot_start_says_so(program, database):
    """Without workers the exit status is the worker's."""
    done = subprocess.run(["prlimit", "--nofile=4:4", "--", program, "-w", "0", "--listen", f"127.0.0.1:{free_port()}", "-d", database],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10)
    assert done.returncode == 1, done
    assert CANNOT_START in done.stderr


def test_a_parent_that_ignores_deaths(program, database, tmp_path):
    """SIGCHLD may be ignored by who starts the pool, and that is inherited."""
    path = str(tmp_path / "sock")
    process = subprocess.Popen([program, "-l", path, "-w", "1", "-d", database], stderr=subprocess.DEVNULL,
                               preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    try:
        pid, = wait_until(lambda: children(process.pid), 5, "a worker")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: children(process.pid) not in ([], [pid]), 2, "a replacement")
    finally:
        process.terminate()
        assert process.wait(5) == 0


def test_workers_do_not_outlive_a_pool_that_is_killed(start_pool):
    pool = start_pool(workers=2)
    workers = wait_for_workers(pool, 2)
    answers(pool)
    pool.process.kill()
    wait_until(lambda: all(state(pid) in ("Z", None) for pid in workers), 5, "the end of the workers")
    assert pool.process.wait(5) == -signal.SIGKILL


# Stopping

@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("used", [False, True])
def test_stopping_while_idle(start_pool, workers, used):
    pool = start_pool(workers=workers)
    if used:
        answers(pool)
    wait_until(pool.log_lines, 5, "a pool that has started")
    assert pool.stop() == 0


def test_stopping_answers_all_that_came_before(start_pool):
    """More than a worker accepts at a time: it was busy when they came, and is told to stop before it could accept them."""
    pool = start_pool()
    answers(pool)
    worker, = wait_for_workers(pool, 1)
    stop_for_good(worker)
    with contextlib.ExitStack() as stack:
        came = [stack.enter_context(fastcgi.Connection(pool.connect_to)) for _ in range(300)]
        for connection in came:
            connection.send(fastcgi.request(fastcgi.variables(target(new_session(), new_url())), keep=True))
        pool.send(signal.SIGTERM)
        wait_until(lambda: pool.logged("info: stopping"), 2, "a pool that stops")
        os.kill(worker, signal.SIGCONT)
        assert [connection.reply().status for connection in came] == [404] * len(came)
        assert pool.process.wait(2) == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_pool_that_stops_refuses_connections(start_site, postgres, merchant, workers):
    """None is accepted by the system that nobody would answer."""
    site = start_site(workers=workers)
    answers(site.pool)
    waiting = site.http.later(new_session(), new_url(), timeout_ms=30000)
    with postgres.session("shop") as session:
        session.run("BEGIN; LOCK TABLE merchant.merchant_contract_terms")
        time.sleep(0.3)  # until it is parked, or waits for the lock
        site.pool.send(signal.SIGTERM)
        wait_until(lambda: not connects(site.pool.connect_to), 1, "a connection that is refused")
        assert site.pool.running(), "it was refused because the pool has ended"
    assert_error(waiting.result(2), 404, 2038)
    assert site.pool.process.wait(2) == 0


def test_stopping_while_something_is_always_ready(program, database, tmp_path):
    """epoll then returns that, and lets no signal in. A listening socket that was shut down is ready at any time."""
    path = tmp_path / "pool.sock"
    with socket.socket(socket.AF_UNIX) as listener, open(tmp_path / "log", "w") as log:
        listener.bind(str(path))
        listener.listen(16)
        with start([program, "--workers", "1", "--database", database], stdin=listener, stderr=log) as pool:
            with fastcgi.Connection(str(path)) as connection:
                connection.send(fastcgi.request(fastcgi.variables(target(new_session(), new_url(), timeout_ms=30000))))
                wait_until(lambda: "connected" in (tmp_path / "log").read_text(), 5, "a worker")
                listener.shutdown(socket.SHUT_RD)
                pool.terminate()
                assert connection.reply().status == 404
            assert pool.wait(3) == 0


def test_an_inherited_socket_stays_open(program, database, tmp_path):
    """Whoever comes while a pool stops is answered by the next pool on the same socket, as under systemd."""
    path = tmp_path / "pool.sock"
    command = [program, "--workers", "1", "--database", database]
    with socket.socket(socket.AF_UNIX) as listener, open(tmp_path / "log", "w") as log:
        listener.bind(str(path))
        listener.listen(16)
        with start(command, stdin=listener, stderr=log) as first:
            assert Fcgi(str(path)).get("/nothing").status == 404
            worker, = wait_until(lambda: children(first.pid), 2, "a worker")
            stop_for_good(worker)
            first.terminate()
            wait_until(lambda: "stopping" in (tmp_path / "log").read_text(), 2, "a pool that stops")
            assert connects(str(path))
            os.kill(worker, signal.SIGCONT)
            assert first.wait(2) == 0
        with fastcgi.Connection(str(path)) as late:
            late.send(fastcgi.request(fastcgi.variables("/nothing")))
            with start(command, stdin=listener, stderr=log) as second:
                assert late.reply().status == 404
                second.terminate()
                assert second.wait(3) == 0


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
        time.sleep(0.1)  # read by then
        assert pool.stop() == 0


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1])
def test_other_signals_that_stop(start_site, merchant, workers, number):
    site = start_site(workers=workers)
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    waiting = site.http.later(session, url, timeout_ms=30000)
    assert site.pool.stop(number) == 0
    assert_order(waiting.result(1), 202, order)


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1])
def test_a_signal_that_comes_early(program, tmp_path, workers, number):
    """The signal comes as soon as there is a socket."""
    for n in range(5):
        path = tmp_path / str(n)
        process = start([program, "--listen", path, "-w", workers, "-d", "host=/nowhere"], stderr=subprocess.DEVNULL)
        while not path.exists():
            pass
        process.send_signal(number)
        assert process.wait(5) == 0
        assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_signals_of_a_terminal(start_pool, number):
    """They reach the workers too, who leave them to the pool: no death is logged."""
    pool = start_pool(workers=3)
    answers(pool)
    wait_for_workers(pool, 3)
    os.killpg(pool.pid, number)
    assert pool.process.wait(2) == 0


def stop_for_good(pid):
    """Make a process stuck: it reacts to nothing but SIGKILL."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: state(pid) == "T", 2, "a worker that is stuck")


KILLED = "did not stop within 1800 ms and is killed"


@pytest.mark.parametrize("workers", [1, 3])
def test_a_stuck_worker_is_killed_when_stopping(start_pool, workers):
    pool = start_pool(workers=workers)
    pool.expect(KILLED)
    answers(pool)
    stuck = wait_for_workers(pool, workers)[0]
    stop_for_good(stuck)
    begun = time.monotonic()
    assert pool.stop(within=3) == 1
    assert 1.5 < time.monotonic() - begun < 2.5
    assert len(pool.logged(f"worker {stuck} {KILLED}")) == 1 and len(pool.logged(KILLED)) == 1


def test_a_second_signal_does_not_put_off_the_end(start_pool):
    pool = start_pool()
    pool.expect(KILLED)
    answers(pool)
    stop_for_good(*wait_for_workers(pool, 1))
    begun = time.monotonic()
    pool.send(signal.SIGTERM)
    time.sleep(1)  # half of the time that it has to stop
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        pool.send(number)
    assert pool.process.wait(3) == 1
    assert time.monotonic() - begun < 2.5
    assert len(pool.logged("info: stopping")) == 1 and not pool.logged("replaced")


# Replacing

class Shoppers:
    """Threads that ask without a pause, and collect the wrong answers."""

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
                before, asked = set(wait_for_workers(pool, 2)), shoppers.asked
                pool.send(signal.SIGHUP)
                wait_until(lambda: len(children(pool.pid)) == 2 and not before & set(children(pool.pid)), 10, "new workers")
                wait_until(lambda: shoppers.asked > asked or shoppers.failures, 10, "shoppers that ask meanwhile")
        assert shoppers.failures == []


def test_two_pools_that_are_restarted_one_after_the_other(program, database, merchant):
    """nginx, configured as in conf/, asks the other pool."""
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    with contextlib.ExitStack() as stack:
        pools = [stack.enter_context(CheckedPool(program, "--workers", "1", database=database,
                                                 address=f"127.0.0.1:{free_port()}")) for _ in range(2)]
        http = (upstream(pools[0].address).replace(f"unix:{pools[0].address}", pools[0].address)
                .replace("# server 192.0.2.1:9000", f"server {pools[1].address}"))
        assert http.count(" server 127.0.0.1") == 2
        nginx = stack.enter_context(CheckedNginx(http=http, server=location()))
        nginx.allow_errors = True  # nginx logs the pool that is away
        with Shoppers(nginx.port, session, url, order) as shoppers:
            for pool in pools * 2:
                time.sleep(0.3)  # they are served by both, then by the other one
                assert pool.stop() == 0
                time.sleep(0.3)
                pool.start()
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


def replaced(pool):
    return len(pool.logged("info: workers replaced"))


def hang_up_stuck_workers(start_pool):
    """SIGHUP to a pool of two workers that are both stuck. Returns the pool, and the pids of these two."""
    pool = start_pool(workers=2)
    pool.expect(KILLED)
    stuck = wait_for_workers(pool, 2)
    answers(pool)
    for pid in stuck:
        stop_for_good(pid)
    pool.send(signal.SIGHUP)
    return pool, stuck


def test_the_end_of_a_replacement_is_logged_when_it_has_come(start_pool):
    """The line comes when the last old worker has ended, not when it was told to stop."""
    pool = start_pool(workers=2)
    pool.expect(KILLED)
    before = set(wait_for_workers(pool, 2))
    answers(pool)
    stop_for_good(max(before))
    pool.send(signal.SIGHUP)
    wait_until(lambda: replaced(pool), 8, "the line")
    assert not before & set(children(pool.pid)) and len(children(pool.pid)) == 2
    assert replaced(pool) == 1


def test_a_stuck_worker_does_not_hold_up_a_replacement(start_pool):
    pool, before = hang_up_stuck_workers(start_pool)
    most = 0
    deadline = time.monotonic() + 10
    while not replaced(pool) and time.monotonic() < deadline:
        most = max(most, len(children(pool.pid)))
        if most == 3:
            answers(pool)
        time.sleep(0.02)
    assert most == 3, "one process too many, and never more"
    assert replaced(pool) == 1 and len(pool.logged(KILLED)) == 2
    assert not set(before) & set(children(pool.pid))
    wait_for_workers(pool, 2)
    answers(pool)


def test_hanging_up_during_a_replacement(start_pool):
    """All workers that are older than the last signal are replaced, and each once."""
    pool, first = hang_up_stuck_workers(start_pool)
    between = wait_until(lambda: set(children(pool.pid)) - set(first), 4, "a new worker")
    for _ in range(3):
        pool.send(signal.SIGHUP)
        time.sleep(0.05)
    wait_until(lambda: replaced(pool), 10, "the line")
    after = wait_for_workers(pool, 2)
    assert not (between | set(first)) & set(after)
    answers(pool)
    # Nothing follows.
    time.sleep(0.5)
    assert children(pool.pid) == after and replaced(pool) == 1


def test_stopping_during_a_replacement(start_pool):
    pool, first = hang_up_stuck_workers(start_pool)
    wait_until(lambda: set(children(pool.pid)) - set(first), 4, "a new worker")
    assert pool.stop(within=2.5) == 1
    assert not replaced(pool)


def test_a_worker_that_dies_during_a_replacement(start_pool):
    pool = start_pool(workers=2)
    pool.expect(KILLED, "killed by signal 9")
    first = wait_for_workers(pool, 2)
    answers(pool)
    stop_for_good(first[0])
    stop_for_good(first[1])
    pool.send(signal.SIGHUP)
    wait_until(lambda: set(children(pool.pid)) - set(first), 4, "a new worker")
    for pid in set(children(pool.pid)):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: replaced(pool), 5, "the line")
    assert not set(first) & set(wait_for_workers(pool, 2))
    time.sleep(0.3)  # nothing follows
    wait_for_workers(pool, 2)
    answers(pool)


def test_a_replacement_that_fails_leaves_old_workers(start_pool):
    """The first new worker fails. The other old ones stay until one has survived its start."""
    pool = start_pool(workers=3)
    pool.expect(CANNOT_START, "at its start")
    first = set(wait_for_workers(pool, 3))
    answers(pool)
    enough = limit_descriptors(pool.pid, 4)
    pool.send(signal.SIGHUP)
    wait_until(lambda: len(pool.logged("at its start")) >= 4, 10, "attempts")
    assert len(first & set(children(pool.pid))) == 2 and not replaced(pool)
    answers(pool)
    limit_descriptors(pool.pid, enough)
    wait_until(lambda: replaced(pool), 10, "the line")
    assert not first & set(wait_for_workers(pool, 3))
    answers(pool)


def test_hanging_up_where_there_is_nothing_to_replace(start_pool):
    pool = start_pool(workers=0)
    answers(pool)
    pool.send(signal.SIGHUP)
    time.sleep(0.3)  # nothing follows
    answers(pool)


# Behind nginx

def kept_site(start_site, workers):
    """nginx keeps one connection to the pool, and will use it for the next request."""
    site = start_site(workers=workers)
    site.pool.expect("killed by signal 9")
    site.nginx.allow_errors = True
    assert_error(site.http.ask(new_session(), new_url()), 404, 2038)
    return site


def test_a_request_on_a_connection_that_closes_just_then_is_asked_again(start_site):
    site = kept_site(start_site, 1)
    pid, = wait_for_workers(site.pool, 1)
    stop_for_good(pid)
    request = site.http.later(new_session(), new_url())
    os.kill(pid, signal.SIGKILL)
    assert_error(request.result(5), 404, 2038)


def test_a_wait_whose_worker_dies_does_not_start_anew(start_site):
    """The request fails: sent again, it would wait for its timeout_ms a second time."""
    site = kept_site(start_site, 1)
    request = site.http.later(new_session(), new_url(), timeout_ms=20000)
    time.sleep(4)  # an answer after twice as long would have waited anew
    os.kill(*wait_for_workers(site.pool, 1), signal.SIGKILL)
    answer = request.result(2)
    assert answer.status == 502 and answer.seconds < 6
    # The next one is served.
    assert_error(site.http.ask(new_session(), new_url()), 404, 2038)


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
    running = Running([pid])
    time.sleep(seconds)
    return running.seconds() / seconds


def test_idle_takes_no_processor_and_leaks_no_descriptor(start_pool):
    pool = start_pool()
    answers(pool)
    pid, = pool.workers()
    before = descriptors(pid)  # with that of the last connection, perhaps
    for _ in range(50):
        answers(pool)
    wait_until(lambda: descriptors(pid) <= before, 2, "no more descriptors")
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


# A limit on the size of files

def limited(program, database, path, size, log):
    """A pool of one worker that may write files of this size, in bytes."""
    process = start(["prlimit", f"--fsize={size}", "--", program, "-v", "-w", "1", "-d", database, "--listen", path], stderr=log)
    wait_until(lambda: connects(path), 5, "the socket")
    return process


def test_a_log_file_at_its_limit(program, database, tmp_path):
    path, log = str(tmp_path / "sock"), tmp_path / "log"
    with open(log, "wb") as file:
        process = limited(program, database, path, 1500, file)
    try:
        workers = wait_until(lambda: children(process.pid), 5, "a worker")
        for _ in range(50):
            assert_error(Fcgi(path).ask(new_session(), new_url()), 404, 2038)
        assert children(process.pid) == workers
        assert log.stat().st_size == 1500
    finally:
        process.terminate()
        assert process.wait(5) == 0


@pytest.mark.parametrize("size", [0, 100])
def test_no_room_for_a_request(program, database, tmp_path, size):
    """It is handed to libfcgi in a file."""
    path = str(tmp_path / "sock")
    process = limited(program, database, path, size, subprocess.PIPE)
    try:
        for _ in range(3):
            assert_error(Fcgi(path).ask(new_session(), new_url()), 500, 53)
    finally:
        process.terminate()
        log = process.communicate(timeout=5)[1].decode()
    assert process.returncode == 0
    assert log.count("warning: requests are refused: File too large (") == 1, log


# The log

def test_a_log_that_nobody_reads_holds_up_nobody(program, database, tmp_path):
    path = tmp_path / "pool.sock"
    reader, writer = os.pipe()
    with start([program, "--verbose", "--workers", "1", "--database", database, "--listen", path],
               stderr=writer, start_new_session=True) as process:
        os.close(writer)
        wait_until(lambda: connects(str(path)), 5, "the socket")
        fcgi = Fcgi(str(path))
        for _ in range(1500):
            assert fcgi.get("/nothing").status == 404
        process.terminate()
        assert process.wait(5) == 0
    with open(reader, "rb") as log:
        assert len(log.read()) > 60_000, "the log did not fill the pipe"
