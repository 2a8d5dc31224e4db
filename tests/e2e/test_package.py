# SPDX-License-Identifier: GPL-3.0-or-later
"""The Debian package, and the systemd units in it, on a bare Debian 12 that systemd runs.

The tests of the machine are steps of one story: each finds what the ones before it have left.
"""

import contextlib
import os
import re
import shutil
import subprocess

import pytest

from machine import Machine
from processes import wait_until
from servers import ROOT

TOOLS = ["debootstrap", "lintian", "nsenter", "systemd-nspawn"]
MISSING = [tool for tool in TOOLS if not shutil.which(tool, path="/usr/sbin:/usr/bin")]
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
              pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap needs root")]

SETTINGS = "/etc/default/merchant-sessions"
SOCKET = "/run/merchant-sessions/merchant-sessions.sock"
URL = "http://127.0.0.1/merchant-backend/instances/shop/sessions/%s?fulfillment_url=https://shop.example/7"


# The package itself

@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Two of them, built in different directories."""
    built = []
    for umask in (0o022, 0o077):
        directory = tmp_path_factory.mktemp(f"package-{umask:o}")
        done = subprocess.run([ROOT / "conf/package", directory], env={**os.environ, "TMPDIR": str(directory)},
                              umask=umask, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        built.append(directory / os.path.basename(done.stdout.strip()))
    return built


def test_two_builds_are_equal(packages):
    assert packages[0].read_bytes() == packages[1].read_bytes()


def test_lintian(packages):
    done = subprocess.run(["lintian", "--fail-on", "error,warning", packages[0]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# The package on a machine

@pytest.fixture(scope="module")
def machine():
    with Machine() as machine:
        yield machine


def sql(machine, text):
    psql = "runuser -u postgres -- psql -X -q -A -t -v ON_ERROR_STOP=1 -d taler-merchant"
    return machine.run(f'{psql} <<"END OF SQL"\n{text}\nEND OF SQL')


def get(machine, session="paid", timeout_ms=0):
    """The status."""
    done = machine.run(f"curl -s -m 60 -o /dev/null -w '%{{http_code}}' '{URL % session}&timeout_ms={timeout_ms}'")
    return done.stdout


def state(machine, unit):
    return machine.run(f"systemctl is-active {unit}", check=False).stdout.strip()


def main_pid(machine):
    return machine.run("systemctl show -P MainPID merchant-sessions").stdout.strip()


def workers(machine):
    pid = main_pid(machine)
    return set(machine.run(f"cat /proc/{pid}/task/{pid}/children").stdout.split())


def journal(machine):
    return machine.run("journalctl -o cat -u merchant-sessions").stdout


@contextlib.contextmanager
def settings(machine, *lines):
    """The file of settings with these lines after its own, and the service restarted."""
    file = machine.root / SETTINGS.lstrip("/")
    shipped = file.read_text()
    file.write_text(shipped + "".join(f"{line}\n" for line in lines))
    try:
        machine.run("systemctl restart merchant-sessions")
        yield
    finally:
        file.write_text(shipped)
        machine.run("systemctl restart merchant-sessions")


@contextlib.contextmanager
def requests_must_succeed(machine):
    """All of them while the block runs, and one that waits."""
    waiting = machine.later(f"curl -s -m 60 -o /dev/null -w '%{{http_code}}' '{URL % 'ordered'}&timeout_ms=5000'")
    load = machine.later(f"""
        rm -f /tmp/stop
        while [ ! -e /tmp/stop ]; do curl -s -m 30 -o /dev/null -w '%{{http_code}}\\n' '{URL % 'paid'}' || true; done
    """)
    try:
        machine.run("sleep 1")
        yield
        machine.run("sleep 1")
    finally:
        machine.run("touch /tmp/stop")
        statuses = load.communicate()[0].split()
    assert set(statuses) == {"200"} and len(statuses) > 20, statuses
    assert waiting.communicate()[0] == "202"


def test_need_starts_no_service(machine):
    machine.run("cd /srv/merchant-sessions && conf/need apache2")
    assert state(machine, "apache2") == "inactive"
    assert not (machine.root / "usr/sbin/policy-rc.d").exists()


def commands_of_readme():
    """The indented lines below the sentence."""
    text = (ROOT / "README").read_text().split("From a bare Debian 12 to a served request")[1]
    block = re.search(r"\n\n((?:    .*\n)+)", text)[1].replace("\\\n", "")
    return [line.strip() for line in block.splitlines()]


def test_the_four_commands_of_readme(machine):
    machine.run("apt-get -q -y install --no-install-recommends postgresql")
    machine.run("runuser -u postgres -- createdb taler-merchant")
    sql(machine, (ROOT / "conf/example.sql").read_text())
    commands = commands_of_readme()
    assert len(commands) == 4, commands
    machine.run("""
        cd /srv/merchant-sessions
        export APT_CONFIG=/tmp/apt.conf
        echo 'APT::Get::Assume-Yes "1";' >$APT_CONFIG
    """ + "\n".join(commands))
    sql(machine, "SELECT demo.make_order('shop', 'order-1', 'paid', 'https://shop.example/7');"
                 "SELECT demo.pay_order('order-1');"
                 "SELECT demo.make_order('shop', 'order-2', 'ordered', 'https://shop.example/7')")
    wait_until(lambda: get(machine) == "200", what="nginx with the new location")
    assert [get(machine, session) for session in ("paid", "ordered", "unknown")] == ["200", "202", "404"]
    for unit in ("merchant-sessions.socket", "merchant-sessions.service"):
        assert state(machine, unit) == "active"
        assert machine.run(f"systemctl is-enabled {unit}").stdout.strip() == "enabled"


def test_check_with_the_settings_of_the_service(machine):
    """By the command that the unit gives."""
    unit = (machine.root / "lib/systemd/system/merchant-sessions.service").read_text()
    command = re.search(r"#     (systemd-run .*)\\\n#  *(.*)", unit)
    done = machine.run(command[1] + command[2])
    assert "lookup: works" in done.stdout


def test_who_may_open_the_socket(machine):
    assert machine.run(f"stat -c '%U %a' {SOCKET}").stdout.strip() == "www-data 600"
    assert machine.run(f"stat -c %U /proc/{main_pid(machine)}").stdout.strip() == "merchant-sessions"


def test_reload_fails_no_request(machine):
    before, pid = workers(machine), main_pid(machine)
    assert before
    with requests_must_succeed(machine):
        machine.run("systemctl reload merchant-sessions")
        wait_until(lambda: not workers(machine) & before, 10, "new workers")
    assert main_pid(machine) == pid
    assert "workers replaced" in journal(machine)


def test_restart_fails_no_request(machine):
    pid = main_pid(machine)
    with requests_must_succeed(machine):
        machine.run("systemctl restart merchant-sessions")
    assert main_pid(machine) != pid


def test_a_crash_fails_at_most_what_it_served(machine):
    machine.run("systemctl kill -s SEGV --kill-who=main merchant-sessions")
    assert get(machine) == "200"
    assert state(machine, "merchant-sessions") == "active"


def test_the_sandbox_lets_tls_and_host_names_pass(machine):
    machine.run("""
        cd /etc/postgresql
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=db.example.org \\
            -addext subjectAltName=DNS:db.example.org -keyout db.key -out /etc/ssl/certs/db.pem 2>&1
        chown postgres db.key
        echo '*:*:*:*:secret' >/etc/merchant-sessions.pgpass
        chmod 600 /etc/merchant-sessions.pgpass
        chown merchant-sessions /etc/merchant-sessions.pgpass
    """)
    for statement in ("ALTER SYSTEM SET ssl_cert_file = '/etc/ssl/certs/db.pem'",
                      "ALTER SYSTEM SET ssl_key_file = '/etc/postgresql/db.key'",
                      "ALTER ROLE \"merchant-sessions\" PASSWORD 'secret'", "SELECT pg_reload_conf()"):
        sql(machine, statement)
    database = "host=db.example.org dbname=taler-merchant sslmode=verify-full sslrootcert=/etc/ssl/certs/db.pem"
    with settings(machine, f'MERCHANT_SESSIONS_DATABASE="{database}"', "PGPASSFILE=/etc/merchant-sessions.pgpass"):
        assert get(machine) == "200"
        assert "t" == sql(machine, "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
                                   " WHERE usename = 'merchant-sessions'").stdout.strip()
    assert get(machine) == "200"


def test_a_tcp_socket(machine):
    """By a drop-in, as `systemctl edit` makes it."""
    upstream = "/etc/nginx/snippets/merchant-sessions-upstream.conf"
    machine.run(f"""
        mkdir /etc/systemd/system/merchant-sessions.socket.d
        printf '[Socket]\\nListenStream=\\nListenStream=127.0.0.1:9000\\n' \\
            >/etc/systemd/system/merchant-sessions.socket.d/override.conf
        systemctl daemon-reload
        systemctl stop merchant-sessions.socket
        systemctl start merchant-sessions
        sed -i.shipped 's|unix:[^ ]*|127.0.0.1:9000|' {upstream}
        systemctl restart nginx
    """)
    assert get(machine) == "200"
    machine.run(f"""
        rm -r /etc/systemd/system/merchant-sessions.socket.d
        mv {upstream}.shipped {upstream}
        systemctl daemon-reload
        systemctl stop merchant-sessions.socket
        systemctl start merchant-sessions
        systemctl restart nginx
    """)
    assert get(machine) == "200"


def test_the_sandbox_lets_that_of_the_program_be(machine):
    """What a worker can give up does not depend on systemd."""
    alone = machine.run("""
        runuser -u merchant-sessions -- /usr/libexec/merchant-sessions.fcgi -v -w 0 -l /tmp/own.sock 2>/tmp/own.log &
        while ! grep -so 'sandbox: .*' /tmp/own.log; do sleep 0.1; done
        kill $!
        wait $! || true
    """).stdout.splitlines()[0]
    with settings(machine, "MERCHANT_SESSIONS_VERBOSE=1"):
        wait_until(lambda: "sandbox: " in journal(machine), what="its line in the log")
        assert set(re.findall("sandbox: .*", journal(machine))) == {alone}


def test_a_wrong_setting(machine):
    with settings(machine, "MERCHANT_SESSIONS_MAX_WAIT=long"):
        wait_until(lambda: state(machine, "merchant-sessions") == "failed", 10, "failure")
        assert "MERCHANT_SESSIONS_MAX_WAIT: 'long' is not a number" in journal(machine)
        assert machine.run("systemctl show -P NRestarts merchant-sessions").stdout.strip() == "0"
        # systemd tries it for the request, and closes the socket when it has failed often.
        assert get(machine) == "502"
    assert get(machine) == "200"


def test_upgrade_fails_no_request(machine):
    pid = main_pid(machine)
    machine.run(f"""
        echo '# the operator has been here' >>{SETTINGS}
        dpkg-deb -R /srv/merchant-sessions/merchant-sessions_*.deb /tmp/newer
        sed -i 's/^Version: .*/&+1/' /tmp/newer/DEBIAN/control
        dpkg-deb -b /tmp/newer /tmp/newer.deb
    """)
    with requests_must_succeed(machine):
        machine.run("apt-get -q -y install /tmp/newer.deb")
    assert main_pid(machine) != pid
    assert "the operator" in (machine.root / SETTINGS.lstrip("/")).read_text()


def test_apache_with_the_file_of_the_package(machine):
    machine.run("""
        systemctl stop nginx
        a2enmod -q proxy_fcgi setenvif
        a2enconf -q merchant-sessions
        systemctl start apache2
    """)
    assert [get(machine, session) for session in ("paid", "ordered", "unknown")] == ["200", "202", "404"]


def left_files(machine):
    return machine.run("find /etc /usr /var/lib /lib/systemd -path /var/lib/dpkg -prune -o"
                       " -path '*merchant-sessions*' -print").stdout.split()


def test_remove_and_purge(machine):
    machine.run("apt-get -q -y remove merchant-sessions")
    for unit in ("merchant-sessions.socket", "merchant-sessions.service"):
        assert state(machine, unit) == "inactive"
    assert not machine.run(f"ls {SOCKET}", check=False).stdout.startswith(SOCKET)
    assert SETTINGS in left_files(machine)
    machine.run("apt-get -q -y purge merchant-sessions; rm /etc/merchant-sessions.pgpass")
    assert left_files(machine) == []
    assert machine.run("systemctl --failed --plain --no-legend").stdout == ""


def test_without_the_package(machine):
    """The lines of README that install what meson has built. The packages that they need are there."""
    text = (ROOT / "README").read_text().split("Without the package:")[1]
    lines = [line.strip() for line in re.search(r"\n\n((?:    .*\n)+)", text)[1].splitlines()]
    assert lines[0].startswith("apt-get install ")
    machine.run("cd /srv/merchant-sessions\n" + "\n".join(lines[1:]))
    machine.run("""
        systemctl stop apache2
        cd /etc/nginx/snippets
        cp /usr/local/share/merchant-sessions/conf/nginx-upstream.conf merchant-sessions-upstream.conf
        cp /usr/local/share/merchant-sessions/conf/nginx-location.conf merchant-sessions-location.conf
        systemctl start nginx
    """)
    assert [get(machine, session) for session in ("paid", "ordered", "unknown")] == ["200", "202", "404"]
