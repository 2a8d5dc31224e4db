# SPDX-License-Identifier: GPL-3.0-or-later
"""What starts the program and keeps it running: each manager for real, systemd as far as it goes without being booted.

test_package.py boots systemd.
"""

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess

import pytest

from checked import CheckedPool
from client import Fcgi, assert_order
from merchant import new_session, new_url
from processes import children, start, state, wait_until
from servers import ALLOW_ROOT, ROOT

PREFIX = "MERCHANT_SESSIONS_"
SETTINGS = ROOT / "conf/merchant-sessions.default"


def need(*tools):
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


class ManagedPool(CheckedPool):
    """The program under a manager, which is the process; `command` starts it, after which it listens on `socket`."""

    MANAGERS_OWN = ("Spawning child", "Child[", "Listening on", "Communication attempt", "Execing", "spawn-fcgi:")

    def log_lines(self):
        return [line for line in super().log_lines() if not line.startswith(self.MANAGERS_OWN)]

    def __init__(self, program, command, **options):
        super().__init__(program, by="manager", **options)
        self.command = command

    def _start_by_manager(self, log):
        return self._start(self.command(self), log)


@pytest.fixture
def assert_serves(merchant):
    def check(pool):
        session, url = new_session(), new_url()
        order = merchant.contract(session, url)
        waiting = pool.fcgi.later(session, url, timeout_ms=20000)
        merchant.pay(order)
        assert_order(waiting.result(), 200, order)
    return check


# spawn-fcgi and multiwatch

def test_spawn_fcgi_with_two_processes(program, database, assert_serves, tmp_path):
    need("spawn-fcgi")
    path, pids = tmp_path / "sock", tmp_path / "pids"
    subprocess.run(["spawn-fcgi", "-s", path, "-F", "2", "-P", pids, "--", program, "--workers", "0",
                    "--database", database], check=True, stdout=subprocess.DEVNULL, timeout=10)
    processes = [int(pid) for pid in re.findall(r"\d+", pids.read_text())]
    try:
        assert len(processes) == 2

        class Pool:
            fcgi = Fcgi(str(path))
        assert_serves(Pool)
        assert [children(pid) for pid in processes] == [[], []]
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not any(state(pid) for pid in processes), 5, "their end")


def test_multiwatch(program, database, assert_serves):
    need("spawn-fcgi", "multiwatch")
    with ManagedPool(program, database=database, command=lambda pool: [
            "spawn-fcgi", "-n", "-s", pool.socket, "--", shutil.which("multiwatch"), "-f", "2", "--", pool.program,
            "--workers", "0", *pool.options]) as pool:
        assert_serves(pool)
        processes = children(pool.pid)
        assert len(processes) == 2
        os.kill(processes[0], signal.SIGKILL)
        wait_until(lambda: len(set(children(pool.pid)) - {processes[0]}) == 2, 5, "another one")
        assert_serves(pool)


# runit and s6, by the same run script

def write_service(pool, database):
    """A service directory with conf/run, pointed at other paths and users."""
    service = pool.directory / "service"
    service.mkdir()
    settings = pool.directory / "settings"
    settings.write_text(SETTINGS.read_text() + f'{PREFIX}DATABASE="{database}"\n{PREFIX}WORKERS=2\n')
    script = (ROOT / "conf/run").read_text()
    for shipped, ours in {"/etc/default/merchant-sessions": settings,
                          "/run/merchant-sessions/merchant-sessions.sock": pool.socket,
                          "/run/merchant-sessions": pool.directory,
                          "/usr/local/libexec/merchant-sessions.fcgi": pool.program,
                          "-u merchant-sessions -g merchant-sessions": "-u nobody -g nogroup"}.items():
        assert shipped in script
        script = script.replace(shipped, str(ours))
    run = service / "run"
    run.write_text(script)
    run.chmod(0o755)
    return service


@pytest.mark.skipif(os.geteuid() != 0, reason="the run script is for root")
@pytest.mark.parametrize("supervise,hang_up", [("runsv", ["sv", "hup"]), ("s6-supervise", ["s6-svc", "-h"])])
def test_run_script(program, database, assert_serves, supervise, hang_up):
    need(supervise, hang_up[0])
    with ManagedPool(program, command=lambda pool: [supervise, write_service(pool, database)]) as pool:
        assert_serves(pool)
        file = os.stat(pool.socket)
        assert (pwd.getpwuid(file.st_uid).pw_name, file.st_mode & 0o777) == ("www-data", 0o600)
        [main] = children(pool.pid)
        assert os.stat(f"/proc/{main}").st_uid == pwd.getpwnam("nobody").pw_uid
        workers = children(main)
        assert len(workers) == 2

        subprocess.run([*hang_up, pool.directory / "service"], check=True, stdout=subprocess.DEVNULL, timeout=10)
        wait_until(lambda: not set(children(main)) & set(workers), 10, "new workers")
        assert_serves(pool)

        workers = children(main)
        os.kill(main, signal.SIGKILL)
        wait_until(lambda: not any(state(pid) for pid in [main, *workers]), 5, "their end")
        wait_until(lambda: can_connect(pool.socket), 5, "its socket")
        assert_serves(pool)


def can_connect(path):
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


# systemd

def activate(pool, *more):
    """The socket unit starts the program at the first connection."""
    return ["systemd-socket-activate", "-E", ALLOW_ROOT, "-l", pool.socket, *more, "-E", "UBSAN_OPTIONS", pool.program, *pool.options]


def test_a_socket_of_systemd(program, database, assert_serves):
    need("systemd-socket-activate")
    with ManagedPool(program, command=activate, database=database) as pool:
        assert_serves(pool)
        assert_serves(pool)


def test_two_sockets_of_systemd_are_too_many(program, tmp_path):
    need("systemd-socket-activate")
    paths = [tmp_path / "one", tmp_path / "two"]
    process = start(["systemd-socket-activate", "-E", ALLOW_ROOT, "-l", paths[0], "-l", paths[1], program], stderr=subprocess.PIPE,
                    text=True)
    try:
        wait_until(lambda: can_connect(paths[1]), 5, "the sockets")
        _, lines = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 64
    assert lines.splitlines()[-1] == "merchant-sessions: LISTEN_FDS is not 1: one listening socket is served, no more"


@pytest.fixture
def units(program, tmp_path):
    need("systemd-analyze")
    (tmp_path / "merchant-sessions.fcgi").symlink_to(program)
    service = (ROOT / "conf/merchant-sessions.service.in").read_text()
    (tmp_path / "merchant-sessions.service").write_text(service.replace("@libexecdir@", str(tmp_path)))
    shutil.copy(ROOT / "conf/merchant-sessions.socket", tmp_path)
    return tmp_path


def test_the_units_are_sound(units):
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", "./merchant-sessions.socket",
                           "./merchant-sessions.service"], cwd=units, capture_output=True, text=True)
    assert done.returncode == 0 and "merchant-sessions" not in done.stderr, done


def test_the_sandbox_is_tight(units):
    """The threshold is in tenths of what systemd-analyze prints, times ten: 11 is 1.1."""
    done = subprocess.run(["systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=11",
                           "./merchant-sessions.service"], cwd=units, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_user(tmp_path):
    need("systemd-sysusers")
    (tmp_path / "etc").mkdir()
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", ROOT / "conf/merchant-sessions.sysusers"], check=True,
                   capture_output=True)
    assert re.search(r"^merchant-sessions:.*:/usr/sbin/nologin$", (tmp_path / "etc/passwd").read_text(), re.MULTILINE)


# The file of settings, and the version of the package

def help_of(program):
    return subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout


def test_settings_are_the_options(program):
    options = re.findall(r"^ +(?:-\w, )?--([a-z-]+)", help_of(program), re.MULTILINE)
    wanted = {PREFIX + name.upper().replace("-", "_") for name in options if name not in ("version", "help")}
    named = re.findall(rf"^#?({PREFIX}\w+)=", SETTINGS.read_text(), re.MULTILINE)
    assert (set(named), len(named)) == (wanted, len(wanted))


def test_settings_show_the_defaults(program):
    values = dict(re.findall(rf"^#{PREFIX}(\w+)=(.*)$", SETTINGS.read_text(), re.MULTILINE))
    defaults = re.findall(r"^ +(?:-\w, )?--([a-z-]+) .*\((\d+)\)$", help_of(program), re.MULTILINE)
    assert len(defaults) >= 5
    for name, default in defaults:
        assert values[name.upper().replace("-", "_")] == default, name


def test_settings_are_accepted(program, tmp_path):
    """Every variable of the file is accepted. --check then looks for the database."""
    text = re.sub(r"^#([A-Z_]+=)", r"\1", SETTINGS.read_text(), flags=re.MULTILINE)
    (tmp_path / "settings").write_text(text.replace("postgres:///taler-merchant", "host=/nowhere"))
    done = subprocess.run(["sh", "-c", f'set -a; . "$1"; exec "$2" --check', "sh", tmp_path / "settings", program],
                          capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (1, ""), done
    assert "/nowhere" in done.stdout


def test_version_of_the_package():
    [project] = re.findall(r"^  version: '(.*)',$", (ROOT / "meson.build").read_text(), re.MULTILINE)
    assert (ROOT / "conf/debian/changelog").read_text().startswith(f"merchant-sessions ({project}) ")
