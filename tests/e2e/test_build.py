# SPDX-License-Identifier: GPL-3.0-or-later
"""What `meson install` installs, and how the compiler has hardened it."""

import re
import subprocess

import pytest

from servers import ROOT

INSTALLED = {"libexec/merchant-sessions.fcgi", "share/man/man8/merchant-sessions.fcgi.8",
             "lib/systemd/system/merchant-sessions.socket", "lib/systemd/system/merchant-sessions.service",
             "lib/sysusers.d/merchant-sessions.conf", "share/merchant-sessions/conf/merchant-sessions.default",
             "share/merchant-sessions/sql/role.sql"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The prefix that an operator's build was installed into."""
    build, root = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("root")
    for command in (["setup", "--buildtype=release", build, ROOT], ["compile", "-C", build, "merchant-sessions.fcgi"],
                    ["install", "-C", build, "--no-rebuild", "--destdir", root]):
        subprocess.run(["meson", *command], check=True, stdout=subprocess.DEVNULL)
    return root / "usr/local"


def test_files(installed):
    for name in INSTALLED:
        assert (installed / name).is_file()
    service = (installed / "lib/systemd/system/merchant-sessions.service").read_text()
    assert "\nExecStart=/usr/local/libexec/merchant-sessions.fcgi\n" in service


def test_hardening(installed):
    program = installed / "libexec/merchant-sessions.fcgi"

    def read(*options):
        return subprocess.run(["readelf", "-W", *options, program], check=True, capture_output=True, text=True).stdout

    assert "DYN (Position-Independent Executable file)" in read("-h")
    assert "GNU_RELRO" in read("-l")
    assert re.search(r"GNU_STACK.* RW ", read("-l"))
    assert re.search(r"FLAGS.*BIND_NOW", read("-d"))
    symbols = read("--dyn-syms")
    assert "__stack_chk_fail" in symbols
    assert re.search(r"__\w+_chk\b", symbols.replace("__stack_chk_fail", "")), "not fortified"
    assert not re.search(r"\b(strcpy|strcat|sprintf|gets|system|popen)@", symbols)
