# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line, the environment, and exit codes."""

import os
import socket
import subprocess

import pytest

from checked import CheckedPool
from client import assert_error
from merchant import new_session, new_url
from processes import children, wait_until
from servers import ROLE

USAGE = 64
PREFIX = "MERCHANT_SESSIONS_"


def run(program, *options, env=None, stdin=subprocess.DEVNULL):
    return subprocess.run([program, *options], env={**os.environ, **(env or {})}, stdin=stdin, capture_output=True,
                          text=True, timeout=5)


def assert_refused(done, *names):
    """One line on standard error that names what is wrong."""
    assert (done.returncode, done.stdout) == (USAGE, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 1, lines
    assert any(name in lines[0] for name in names), lines


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "sock")


@pytest.mark.parametrize("option", ["--nonsense", "--worker-count=3", "-x", "--no-listen"])
def test_unknown_options(program, path, option):
    assert_refused(run(program, "-l", path, option), option.split("=")[0], option.strip("-"))


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_root_is_refused(program, path):
    done = run(program, "-l", path, env={PREFIX + "ALLOW_ROOT": "0"})
    assert (done.returncode, done.stdout) == (77, "")
    assert "--allow-root" in done.stderr
    assert not os.path.exists(path)


def test_words_that_are_no_options(program, path):
    assert_refused(run(program, "-l", path, "start"), "start")


@pytest.mark.parametrize("option", ["--workers", "--listen", "--database", "--socket-mode", "--poll-interval", "--max-wait",
                                    "--max-waiting", "--db-timeout"])
def test_options_without_value(program, option):
    assert_refused(run(program, option), option.strip("-"))


NUMBERS = ["workers", "poll-interval", "max-wait", "max-waiting", "db-timeout"]
NO_NUMBERS = ["", "x", "1x", "-1", "1.5", " 1", "1 ", "99999999999999999999", "0x10", "4294967297", "+1"]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", NO_NUMBERS)
def test_values_that_are_no_numbers(program, path, name, value):
    assert_refused(run(program, "-l", path, f"--{name}={value}"), f"--{name}", name)


@pytest.mark.parametrize("name", NUMBERS)
def test_bad_values_in_the_environment(program, path, name):
    variable = PREFIX + name.upper().replace("-", "_")
    assert_refused(run(program, "-l", path, env={variable: "some"}), variable, f"--{name}")


@pytest.mark.parametrize("mode", ["", "rw", "0888", "99999", "-1"])
def test_bad_socket_modes(program, path, mode):
    assert_refused(run(program, "-l", path, f"--socket-mode={mode}"), "socket-mode")


@pytest.mark.parametrize("conninfo", ["nonsense", "nonsense=1", "host='x"])
def test_bad_conninfo(program, path, conninfo):
    assert_refused(run(program, "-l", path, f"--database={conninfo}"), "--database")


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:99999", "/tmp/" + "x" * 200])
def test_bad_addresses(program, address):
    assert_refused(run(program, f"--listen={address}"), "--listen")


@pytest.mark.parametrize("address", ["/nowhere/at/all/sock", "192.0.2.1:9000"])
def test_addresses_that_cannot_be_had(program, address):
    done = run(program, "-w", "0", "--listen", address)
    assert done.returncode not in (0, USAGE)
    assert address in done.stderr and len(done.stderr.splitlines()) == 1


def test_nothing_to_listen_on(program):
    assert_refused(run(program), "--listen", "descriptor 0")


def test_descriptor_0_that_does_not_listen(program):
    with socket.socket() as other:
        assert_refused(run(program, stdin=other), "--listen", "descriptor 0")


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(program, option):
    done = run(program, option)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("merchant-sessions") and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_fits_on_a_screen(program, option):
    done = run(program, option)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    for name in ("--database", "--workers", "--listen", "--socket-mode", "--poll-interval", "--max-wait", "--max-waiting",
                 "--db-timeout", "--check", "--verbose", "--version", "--help"):
        assert name in done.stdout, name


def test_options_by_variable(program, database):
    values = {"DATABASE": database, "WORKERS": "2", "POLL_INTERVAL": "100", "MAX_WAIT": "500", "MAX_WAITING": "1",
              "DB_TIMEOUT": "1000"}
    with CheckedPool(program, by="descriptor", env={PREFIX + key: value for key, value in values.items()}) as pool:
        wait_until(lambda: len(children(pool.pid)) == 2, 5, "two workers")
        answer = pool.fcgi.ask(new_session(), new_url(), timeout_ms=30000)
        assert_error(answer, 404, 2038)
        assert 0.5 <= answer.seconds < 1.5


def test_listen_by_variable(program, database, path):
    environment = {**os.environ, PREFIX + "LISTEN": path, PREFIX + "DATABASE": database, PREFIX + "SOCKET_MODE": "0600"}
    process = subprocess.Popen([program, "-w", "0"], env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: os.path.exists(path) and os.stat(path).st_mode & 0o777 == 0o600, 5, "the socket")
    finally:
        process.terminate()
        assert process.wait(5) == 0


def test_the_command_line_goes_before_the_environment(program, database):
    with CheckedPool(program, "-w", "1", database=database, env={PREFIX + "WORKERS": "3", PREFIX + "DATABASE": "host=/nowhere"}
                     ) as pool:
        assert_error(pool.fcgi.ask(new_session(), new_url()), 404, 2038)
        assert len(children(pool.pid)) == 1


def test_libpq_variables(program, postgres, database):
    env = {"PGHOST": str(postgres.directory), "PGPORT": str(postgres.port), "PGDATABASE": "shop", "PGUSER": ROLE}
    with CheckedPool(program, "-w", "1", env=env) as pool:
        assert_error(pool.fcgi.ask(new_session(), new_url()), 404, 2038)


def test_a_uri(program, postgres, database):
    with CheckedPool(program, "-w", "1", database=f"postgresql://{ROLE}@127.0.0.1:{postgres.port}/shop") as pool:
        assert_error(pool.fcgi.ask(new_session(), new_url()), 404, 2038)


def test_hosts_that_are_away_are_passed_over(program, postgres, database):
    """Read replicas are given as libpq's list of hosts."""
    conninfo = f"host=/nowhere,{postgres.directory} port={postgres.port} dbname=shop user={ROLE}"
    with CheckedPool(program, "-w", "1", database=conninfo) as pool:
        assert_error(pool.fcgi.ask(new_session(), new_url()), 404, 2038)
