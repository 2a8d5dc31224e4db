# SPDX-License-Identifier: GPL-3.0-or-later
"""A bare Debian 12 of its own, with a running systemd: what a package and its units are tried on."""

import os
import pathlib
import shutil
import signal
import subprocess

import pytest

from processes import children, start, wait_until
from servers import ROOT, Server

# What the operator's commands install, and this machine has no network for once it runs.
LATER = ["apache2", "apache2-dev", "build-essential", "debhelper", "libcjson-dev", "libcmocka-dev", "libfcgi-dev",
         "libpq-dev", "meson", "pkg-config", "postgresql"]
NO_MIRROR = "Failed getting release file"


class Machine(Server):
    """Made by debootstrap in a temporary directory, and run by systemd-nspawn without a network.

    `run(script)` runs a shell script on it as root; the repository is at /srv/merchant-sessions.
    """

    def __init__(self):
        super().__init__("machine")
        self.root = self.directory / "root"
        # A host name, as those of temporary directories are not always.
        self.machine = f"machine-{os.getpid()}"
        # systemd-nspawn puts what it starts beside itself.
        self.groups = [pathlib.Path(f"/sys/fs/cgroup/{name}/{self.machine}") for name in ("systemd", "unified")
                       if pathlib.Path(f"/sys/fs/cgroup/{name}/cgroup.procs").exists()]
        self.groups = self.groups or [pathlib.Path(f"/sys/fs/cgroup/{self.machine}")]

    def start(self):
        self._make_root()
        self._copy_repository()
        self._boot()

    def _make_root(self):
        with open(self.log, "ab") as log:
            # What it mounts goes with it, however it ends.
            made = subprocess.run(["unshare", "-m", "debootstrap", "--variant=minbase",
                                   "--include=systemd-sysv,dbus,curl", "bookworm", self.root], stdout=log, stderr=log)
        if made.returncode and any(NO_MIRROR in line for line in self.log_lines()):
            pytest.skip("debootstrap has no mirror")
        assert made.returncode == 0, self.log_lines()[-20:]
        self._before_boot("apt-get -q update && apt-get -q -y install --download-only nginx-light && "
                          "apt-get -q -y install --no-install-recommends --download-only " + " ".join(LATER))
        # What asks for the network from now on gets its answer at once.
        self._write("etc/apt/apt.conf.d/no-network", 'Acquire::Retries "0";\n')
        self._write("etc/resolv.conf", "")
        self._write("etc/hosts", "127.0.0.1 localhost db.example.org\n")

    def _write(self, path, text):
        (self.root / path).write_text(text)

    def _before_boot(self, script):
        """Run a script on the machine while it has the network of this one."""
        with open(self.log, "ab") as log:
            done = subprocess.run([*self._nspawn(), "--pipe", "sh", "-c", script], stdin=subprocess.DEVNULL, stdout=log,
                                  stderr=log)
        assert done.returncode == 0, self.log_lines()[-20:]

    def _nspawn(self):
        return ["systemd-nspawn", "-q", "-D", self.root, f"--machine={self.machine}", "--register=no", "--keep-unit",
                "--resolv-conf=off",
                # It holds them back by default, from all that runs on the machine.
                "--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self"]

    def _copy_repository(self):
        target = self.root / "srv/merchant-sessions"
        target.mkdir()
        files = subprocess.run(["tar", "-C", ROOT, "-c", "--exclude-vcs", "--exclude=./build*", "."], check=True,
                               stdout=subprocess.PIPE)
        subprocess.run(["tar", "-C", target, "-x", "--no-same-owner"], input=files.stdout, check=True)

    def _boot(self):
        for group in self.groups:
            group.mkdir()
        script = 'for group in $CGROUPS; do echo $$ >"$group/cgroup.procs"; done; exec "$@"'
        environment = {**os.environ, "CGROUPS": " ".join(map(str, self.groups))}
        with open(self.log, "ab") as log:
            self.process = start(["sh", "-c", script, "boot", *self._nspawn(), "--private-network", "--console=pipe",
                                  "-b"], env=environment, stdout=log, stderr=log)
        wait_until(lambda: self.running() and children(self.process.pid), 10, "systemd-nspawn")
        wait_until(self._is_up, 60, "systemd")

    def _is_up(self):
        return self.run("systemctl is-system-running", check=False).stdout.strip() in ("running", "degraded")

    @property
    def _init(self):
        return children(self.process.pid)[0]

    def later(self, script, **options):
        """Start the script of `run` and return its process."""
        return subprocess.Popen(
            ["nsenter", "-t", str(self._init), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w",
             "env", "-i", "HOME=/root", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive",
             "LC_ALL=C.UTF-8", "sh", "-e", "-c", script],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)

    def run(self, script, check=True):
        process = self.later(script)
        output, _ = process.communicate()
        assert not check or process.returncode == 0, output
        return subprocess.CompletedProcess(script, process.returncode, output)

    def __exit__(self, *_):
        if self.running():
            # systemd-nspawn then has the machine power off.
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.kill(self._init, signal.SIGKILL)
                self.process.wait(10)
        for group in self.groups:
            for path in sorted(group.glob("**/"), reverse=True):
                path.rmdir()
        shutil.rmtree(f"/run/systemd/nspawn/propagate/{self.machine}", ignore_errors=True)
        super().__exit__()
