# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing that others can read says who buys what, or holds a password: log, command line, metrics, core files.

Each pool of the other tests is looked at too, when it stops: see CheckedPool.
"""

import os
import pathlib
import resource
import signal
import subprocess

import pytest

import fastcgi
from checked import CheckedPool
from client import target
from merchant import MARKER, new_session, new_url
from processes import wait_until
from servers import Postgres, make_shop


def test_verbose_log(start_pool, merchant):
    pool = start_pool("--verbose", "--poll-interval", "50", "--max-waiting", "1")
    pool.expect("")
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    waiting = pool.fcgi.later(session, url, timeout_ms=5000)
    pool.fcgi.ask(new_session(), new_url(), timeout_ms=100)
    merchant.pay(order)
    assert waiting.result().status == 200
    pool.fcgi.ask(session, url, instance=MARKER)
    pool.fcgi.get(f"/sessions/{MARKER}%zz?fulfillment_url={MARKER}")
    pool.fcgi.get(f"/{MARKER}", method=MARKER)
    pool.fcgi.get(f"/sessions/{MARKER}?fulfillment_url=%ff{MARKER}&timeout_ms={MARKER}")
    for hostile in (b"GET /sessions/s3cr3t HTTP/1.1\r\n\r\n", fastcgi.begin() + fastcgi.record(fastcgi.PARAMS, b"\x7f" + b"s3cr3t" * 9)):
        with fastcgi.Connection(pool.connect_to) as connection:
            connection.send(hostile)
    os.kill(pool.workers()[0], signal.SIGKILL)
    wait_until(lambda: pool.logged("killed by signal 9"), what="the line")
    pool.fcgi.ask(session, url)
    assert pool.logged(" debug: ")
    assert MARKER not in pool.fcgi.get("/metrics", MERCHANT_SESSIONS_METRICS="1").body.decode()


@pytest.mark.parametrize("sandbox", [True, False])
def test_core_file(start_pool, sandbox):
    """A worker leaves none, whatever the limit is. Without the sandbox it does, and shoppers' sessions are in it."""
    if pathlib.Path("/proc/sys/kernel/core_pattern").read_text().strip() != "core":
        pytest.skip("the kernel gives core files to a program, or a name of its own")
    pool = start_pool(*[] if sandbox else ["--no-sandbox"])
    pool.expect("killed by signal 6")
    waiting = pool.fcgi.later(new_session(), new_url(), timeout_ms=20000)
    worker, = pool.workers()
    resource.prlimit(worker, resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.kill(worker, signal.SIGABRT)
    wait_until(lambda: pool.logged("killed by signal 6"), what="the end of the worker")
    assert waiting.exception(10), "the worker is gone"
    cores = list(pool.directory.glob("core*"))
    assert len(cores) == (0 if sandbox else 1)
    assert all(MARKER.encode() in core.read_bytes() for core in cores)


def test_failing_lookups(program):
    """A message of the database may quote the values that it could not take."""
    with Postgres() as postgres:
        database = make_shop(postgres, "shop")
        with CheckedPool(program, "-v", "-w", "1", "--db-timeout", "300", database=database) as pool:
            pool.expect("")
            session, url = new_session(), new_url()
            assert pool.fcgi.ask(session, url).status == 404
            for breakage in ("ALTER TABLE merchant.merchant_contract_terms ALTER session_id DROP DEFAULT, "
                             "ALTER session_id TYPE int USING 0",
                             "DROP TABLE merchant.merchant_orders CASCADE"):
                postgres.psql(breakage, "shop")
                assert pool.fcgi.ask(session, url, timeout_ms=100).status == 500
            postgres.stop("immediate")
            assert pool.fcgi.ask(session, url, timeout_ms=100).status == 500


def test_password(program):
    for conninfo in (f"host=/nowhere dbname=x password={MARKER}", f"postgresql://user:{MARKER}@127.0.0.1:1/x"):
        with CheckedPool(program, "-v", "-w", "1", "--db-timeout", "300", database=conninfo) as pool:
            pool.expect("")
            assert pool.fcgi.ask(new_session(), new_url()).status == 500
            pool.send(signal.SIGHUP)
            wait_until(lambda: pool.logged("workers replaced"), what="new workers")
            assert pool.fcgi.ask(new_session(), new_url()).status == 500
            assert b"dbname" not in pathlib.Path(f"/proc/{pool.pid}/cmdline").read_bytes()


def test_conninfo_without_a_password(start_pool, database):
    """It stays to be seen in the list of processes."""
    pool = start_pool()
    assert database.encode() in pathlib.Path(f"/proc/{pool.pid}/cmdline").read_bytes()


def test_password_that_is_refused(program, postgres, database):
    conninfo = postgres.conninfo("shop", user="nobody-of-that-name") + f" password={MARKER}"
    with CheckedPool(program, "-v", "-w", "1", "--db-timeout", "300", database=conninfo) as pool:
        pool.expect("")
        assert pool.fcgi.ask(new_session(), new_url()).status == 500
        assert pool.logged("nobody-of-that-name")


def test_a_conninfo_that_is_malformed(program, tmp_path):
    done = subprocess.run([program, "-l", tmp_path / "sock", "-d", f"password={MARKER} nonsense"], capture_output=True, text=True,
                          timeout=10)
    assert done.returncode == 64
    assert MARKER not in done.stderr + done.stdout


def test_nothing_is_said_per_request(start_pool):
    """At the default level the log is the same after many requests as after one."""
    pool = start_pool()
    uris = [target(new_session(), new_url(), "shop"), target(new_session(), new_url(), "unknown"), "/sessions/a",
            "/orders", target("", ""), target(new_session(), new_url(), "shop", "x")]
    assert pool.fcgi.get(uris[0]).status == 404
    before = pool.log_lines()
    for uri in uris * 20:
        pool.fcgi.get(uri)
        pool.fcgi.get(uri, method="POST")
    assert pool.log_lines() == before
