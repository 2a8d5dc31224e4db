# SPDX-License-Identifier: GPL-3.0-or-later
"""Chromium without a window, driven by the WebDriver protocol: JSON over HTTP, to a chromedriver of our own."""

import base64
import contextlib
import json
import shutil
import urllib.request

from processes import free_port, start, wait_until
from servers import Server

# As root there is no sandbox; the rest keeps the browser from calling its makers.
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
# Keys, as WebDriver has them.
TAB, ENTER = "\ue004", "\ue007"


def is_installed():
    return shutil.which("chromium") and shutil.which("chromedriver")


class Browser(Server):
    """One tab. `go(url)`, then ask by `run(script)`; `errors()` are the lines of the console that no page should have."""

    def __init__(self):
        super().__init__("chromedriver")
        self.port = free_port()
        self.session = None

    def start(self):
        with open(self.log, "ab") as log:
            self.process = start(["chromedriver", f"--port={self.port}"], stdout=log, stderr=log, cwd=self.directory)
        self.wait_ready(self._answers)
        # chromedriver leaves it running when it is killed itself.
        chromium = self.directory / "chromium"
        chromium.write_text(f'#!/bin/sh\nexec setpriv --pdeathsig KILL -- {shutil.which("chromium")} "$@"\n')
        chromium.chmod(0o755)
        options = {"binary": str(chromium), "args": [*ARGUMENTS, f"--user-data-dir={self.directory}/profile"]}
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.session = self._send("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})["sessionId"]

    def __exit__(self, *_):
        if self.session and self.running():
            with contextlib.suppress(OSError):
                self._send("DELETE", f"/session/{self.session}")
        if self.running():
            self.process.terminate()
            self.process.wait(10)
        super().__exit__()

    def go(self, url):
        self.command("url", {"url": url})

    def run(self, script, *arguments):
        return self.command("execute/sync", {"script": script, "args": arguments})

    def command(self, path, body):
        return self._send("POST", f"/session/{self.session}/{path}", body)

    def devtools(self, name, **parameters):
        return self.command("goog/cdp/execute", {"cmd": name, "params": parameters})

    def press(self, *keys):
        """Type keys into the element that has the focus."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.command("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def open_another_tab(self):
        """Open a new tab and close the old one."""
        handle = self.command("window/new", {"type": "tab"})["handle"]
        self._send("DELETE", f"/session/{self.session}/window")
        self.command("window", {"handle": handle})

    def hide(self):
        self._set_window("minimized")

    def show(self):
        self._set_window("normal")

    def _set_window(self, state):
        window = self.devtools("Browser.getWindowForTarget")["windowId"]
        self.devtools("Browser.setWindowBounds", windowId=window, bounds={"windowState": state})

    def look_like(self, width, scheme="light", motion="no-preference"):
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1,
                      mobile=width < 600)
        self.devtools("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": motion}])

    def screenshot(self, path):
        """Write a picture of the whole page, as PNG."""
        size = self.devtools("Page.getLayoutMetrics")["cssContentSize"]
        image = self.devtools("Page.captureScreenshot", captureBeyondViewport=True, clip={**size, "scale": 1})
        path.write_bytes(base64.b64decode(image["data"]))

    def roles(self):
        """The (role, name) of each node of the accessibility tree."""
        nodes = self.devtools("Accessibility.getFullAXTree")["nodes"]
        return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]

    def errors(self):
        return [line["message"] for line in self.command("se/log", {"type": "browser"})]

    def wait(self, script, seconds=10):
        """Wait until the script returns something true, and return it."""
        return wait_until(lambda: self.run(script), seconds, script)

    def _answers(self):
        try:
            return self._send("GET", "/status")["ready"]
        except OSError:
            return False

    def _send(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return json.load(answer)["value"]
