# SPDX-License-Identifier: GPL-3.0-or-later
"""What a worker gives up, and that it reaches the database all the same.

The unit test of sandbox tries what is forbidden.
"""

import contextlib

import pytest

from checked import CheckedPool
from merchant import new_session, new_url
from own_cluster import database, merchant  # noqa: F401 - fixtures
from processes import status
from servers import TlsPostgres


@pytest.fixture(scope="module")
def postgres():
    with TlsPostgres() as cluster:
        yield cluster


@contextlib.contextmanager
def serving(program, conninfo, *options, workers=1):
    with CheckedPool(program, "--workers", workers, "--verbose", *options, database=conninfo) as pool:
        assert pool.fcgi.ask(new_session(), new_url()).status == 404
        yield pool


def over_tls(postgres, *more):
    return " ".join([f"host=localhost port={postgres.port} dbname=shop user=merchant-sessions", "sslmode=verify-full",
                     f"sslrootcert={postgres.certificate}", *more])


@pytest.mark.parametrize("workers", [0, 1])
def test_tls_and_a_host_name(program, postgres, database, workers):  # noqa: F811
    with serving(program, over_tls(postgres), workers=workers) as pool:
        assert pool.logged("sandbox: new privileges off, core files off")
        assert postgres.psql("SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl", "shop") == "1"
        postgres.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_ssl WHERE ssl", "shop")
        pool.expect("trying again")
        assert pool.fcgi.ask(new_session(), new_url()).status == 404


def test_password_in_a_file(program, postgres, database, tmp_path):  # noqa: F811
    passwords = tmp_path / "passwords"
    passwords.write_text("*:*:*:*:wrong-or-right-nobody-asks\n")
    passwords.chmod(0o600)
    with serving(program, f"{database} passfile={passwords}"):
        pass


def test_state_of_a_worker(program, database):  # noqa: F811
    with serving(program, database) as pool:
        worker, = pool.workers()
        assert status(worker, "NoNewPrivs") == "1"
        assert status(pool.pid, "NoNewPrivs") == "0"
    with serving(program, database, "--no-sandbox") as pool:
        worker, = pool.workers()
        assert status(worker, "NoNewPrivs") == "0"
        assert not pool.logged("sandbox")
