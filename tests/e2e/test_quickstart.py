# SPDX-License-Identifier: GPL-3.0-or-later
"""conf/quickstart with a terminal, as a visitor has it, and without."""

import contextlib
import glob
import os
import pathlib
import pty
import re
import signal
import subprocess
import termios
import threading

import pytest

from browser import Browser, is_installed
from processes import wait_until
from servers import ROOT

# It builds the program, on a machine that other tests use too.
START = 200
QUICKSTART = ROOT / "conf/quickstart"


class Quickstart:
    """A run of it; `text` is what it has written. When the block ends, it must have cleaned up."""

    def __init__(self):
        self.text = ""

    def read(self, descriptor):
        # Where the last process with a terminal ends, reading fails.
        with contextlib.suppress(OSError):
            while part := os.read(descriptor, 4096):
                self.text += part.decode(errors="replace").replace("\r\n", "\n")

    def expect(self, pattern, seconds=20):
        return wait_until(lambda: re.search(pattern, self.text), seconds, f"{pattern} in {self.text}")

    @property
    def directory(self):
        return pathlib.Path(self.expect(r"Building in (\S+)")[1])

    def start(self):
        self.reader = threading.Thread(target=self.read, args=[self.output], daemon=True)
        self.reader.start()
        self.expect(r"and the logs are in", START)

    def assert_gone(self):
        assert not self.directory.exists(), self.text
        needle = str(self.directory).encode()
        assert [pid for pid in glob.glob("/proc/[0-9]*/cmdline") if needle in read_bytes(pid)] == []


class WithTerminal(Quickstart):
    def __enter__(self):
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execv(QUICKSTART, [str(QUICKSTART)])
        self.output = self.terminal
        self.settings = termios.tcgetattr(self.terminal)
        self.start()
        return self

    def press(self, key):
        os.write(self.terminal, key)

    def wait(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGTERM)
            self.wait()
        os.close(self.terminal)


class WithoutTerminal(Quickstart):
    def __enter__(self):
        self.process = subprocess.Popen([QUICKSTART], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT)
        self.output = self.process.stdout.fileno()
        self.start()
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.reader.join()


def read_bytes(path):
    try:
        return pathlib.Path(path).read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@pytest.mark.skipif(not is_installed(), reason="chromium and chromium-driver are not installed")
def test_the_page_turns_by_keys_in_the_terminal():
    with WithTerminal() as quickstart, Browser() as browser:
        state = "return document.body?.dataset.state === '{}'".format
        quickstart.press(b"o")
        quickstart.expect("No page waits")
        browser.go(quickstart.expect(r"waits for a payment: (\S+)")[1])
        browser.wait(state("unknown"))
        quickstart.press(b"x")
        quickstart.press(b"o")
        quickstart.expect("is made")
        browser.wait(state("ordered"))
        quickstart.press(b"o")
        quickstart.expect("ordered already")
        quickstart.press(b"p")
        quickstart.expect("is paid")
        # The request that waits for it would last for thirty seconds.
        browser.wait(state("paid"), 8)
        quickstart.press(b"o")
        quickstart.expect("paid already")
        quickstart.press(b"\x03")
        assert quickstart.wait() == 130
        assert termios.tcgetattr(quickstart.terminal) == quickstart.settings
        quickstart.assert_gone()


def test_without_a_terminal_there_are_no_keys():
    with WithoutTerminal() as quickstart:
        quickstart.expect(r"waits for a payment: http://127\.0\.0\.1:\d+/\n")
        assert "keys" not in quickstart.text
    assert quickstart.process.returncode == 143
    quickstart.assert_gone()
