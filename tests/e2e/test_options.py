# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line, the environment, exit codes, and --check."""

import os
import socket
import subprocess

import pytest

from client import assert_error
from conftest import CheckedPool
from layouts import make_merchant, put_view_before_contracts
from merchant import MARKER, new_session, new_url
from servers import ROLE, Postgres, children, make_shop, wait_until

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
    """libpq's list of hosts is how read replicas are told."""
    conninfo = f"host=/nowhere,{postgres.directory} port={postgres.port} dbname=shop user={ROLE}"
    with CheckedPool(program, "-w", "1", database=conninfo) as pool:
        assert_error(pool.fcgi.ask(new_session(), new_url()), 404, 2038)


# --check

def test_check(program, database):
    done = run(program, "--check", "-d", database)
    assert done.returncode == 0, done
    assert "merchant" in done.stdout + done.stderr


def test_check_needs_no_socket_and_serves_nobody(program, database, path):
    assert run(program, "--check", "-d", database, "-l", path).returncode == 0
    assert not os.path.exists(path)


def test_check_of_a_database_that_is_away(program):
    done = run(program, "--check", "-d", f"host=/nowhere password={MARKER}", "--db-timeout", "500")
    assert done.returncode == 1
    assert "/nowhere" in done.stdout + done.stderr
    assert MARKER not in done.stdout + done.stderr


@pytest.mark.parametrize("broken,name", [("DROP TABLE merchant_contract_terms", "merchant_contract_terms"),
                                         ("ALTER TABLE merchant_contract_terms DROP paid", "paid"),
                                         ('REVOKE SELECT (merchant_id) ON merchant_instances FROM "merchant-sessions"',
                                          "merchant_instances")])
def test_check_of_a_database_that_will_not_do(program, postgres, broken, name):
    db = f"check {name}"
    make_merchant(postgres, db).sql(broken)
    done = run(program, "--check", "-d", postgres.conninfo(f"'{db}'"))
    assert done.returncode == 1
    assert name in done.stdout + done.stderr


CONTRACTS_INDEXED = "claimed orders: found by an index"
CONTRACTS_UNINDEXED = "claimed orders: merchant_contract_terms has no index for the lookup"
OFFERS_INDEXED = "unclaimed orders: found by an index"
OFFERS_UNINDEXED = "unclaimed orders: merchant_orders has no index for the lookup; see sql/orders-index.sql"
OFFERS_NOT_FOUND = "unclaimed orders: not found by session"


@pytest.mark.parametrize("name,layout,status,contracts,offers", [
    ("both", dict(), 0, CONTRACTS_INDEXED, OFFERS_INDEXED),
    ("contracts", dict(index=False), 1, CONTRACTS_UNINDEXED, OFFERS_INDEXED),
    ("offers", dict(offers_index=False), 0, CONTRACTS_INDEXED, OFFERS_UNINDEXED),
    ("2022", dict(offers_have_session=False), 0, CONTRACTS_INDEXED, OFFERS_NOT_FOUND)])
def test_check_tells_of_a_missing_index(program, postgres, name, layout, status, contracts, offers):
    """The one on merchant_orders is optional."""
    make_merchant(postgres, f"check {name}", **layout)
    done = run(program, "--check", "-d", postgres.conninfo(f"'check {name}'"))
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (status, "")
    assert [line for line in lines if line.startswith(contracts)], lines
    assert [line for line in lines if line.startswith(offers)], lines
    assert "changes: detected" in lines
    assert [line for line in lines if line.startswith("lookup: works")], lines


def test_check_runs_each_statement(program, postgres):
    make_merchant(postgres, "check statements")
    postgres.psql("ALTER DATABASE \"check statements\" SET log_statement = 'all'")
    assert run(program, "--check", "-d", postgres.conninfo("'check statements'")).returncode == 0
    for statement in ("merchant_sessions_lookup", "merchant_sessions_poll", "merchant_sessions_changes"):
        assert [line for line in postgres.log_lines() if f"execute {statement}" in line]


def test_check_of_a_locked_table(program, postgres):
    make_merchant(postgres, "check locked")
    with postgres.session("check locked") as other:
        other.run("BEGIN; LOCK TABLE merchant.merchant_contract_terms")
        done = run(program, "--check", "-d", postgres.conninfo("'check locked'"), "--db-timeout", "300")
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line.startswith("failed: ")], done


def test_check_of_a_database_that_hangs(program):
    with Postgres() as hanging:
        shop = make_shop(hanging, "shop")
        hanging.pause()
        done = run(program, "--check", "-d", shop, "--db-timeout", "300")
        assert done.returncode == 1
        assert "failed: no answer within 300 ms" in done.stdout


def test_check_passes_over_a_host_that_hangs(program, postgres, database):
    with Postgres() as hanging:
        hanging.pause()
        hosts = f"host={hanging.directory},{postgres.directory} port={hanging.port},{postgres.port}"
        done = run(program, "--check", "-d", f"{hosts} dbname=shop user={ROLE}", "--db-timeout", "300")
        assert done.returncode == 0, done
        assert str(postgres.directory) in done.stdout


def test_check_of_a_view(program, postgres):
    put_view_before_contracts(make_merchant(postgres, "check view"))
    done = run(program, "--check", "-d", postgres.conninfo("'check view'"))
    assert "changes: cannot be detected" in done.stdout
