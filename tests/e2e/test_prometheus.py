# SPDX-License-Identifier: GPL-3.0-or-later
"""What Prometheus makes of the metrics, the dashboard and the alerts."""

import json
import math
import shutil
import subprocess
import time
import urllib.parse
import urllib.request

import pytest

from checked import CheckedPool, open_site
from merchant import new_session, new_url
from metrics import dashboard_queries, metrics_location
from own_cluster import database, merchant  # noqa: F401
from processes import free_port, start, wait_until
from servers import ROOT, Postgres, Server, location

pytestmark = pytest.mark.skipif(not shutil.which("promtool") or not shutil.which("prometheus"),
                                reason="prometheus is not installed")


class Prometheus(Server):
    """Scrapes 127.0.0.1:`target` each second, with the shipped alerts."""

    def __init__(self, target):
        super().__init__("prometheus")
        self.port = free_port()
        self.config = self.directory / "prometheus.yml"
        self.config.write_text(json.dumps({  # JSON is YAML
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ROOT / "conf/alerts.yml")],
            "scrape_configs": [{"job_name": "shop", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}]}))

    def start(self):
        with open(self.log, "ab") as log:
            self.process = start(["prometheus", f"--config.file={self.config}", f"--storage.tsdb.path={self.directory}/data",
                                  f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn"], stdout=log, stderr=log)
        self.wait_ready(self._answers)

    def _answers(self):
        try:
            return self.get("query", query="up")
        except OSError:
            return None

    def get(self, what, **parameters):
        url = f"http://127.0.0.1:{self.port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    def query(self, query):
        """The values that Prometheus has now."""
        return [float(result["value"][1]) for result in self.get("query", query=query)["result"]]

    def alert(self, name):
        """The state of an alert: inactive, pending or firing."""
        rules = [rule for group in self.get("rules")["groups"] for rule in group["rules"]]
        assert len(rules) == 3 and all(rule["health"] in ("ok", "unknown") for rule in rules), rules
        return next(rule["state"] for rule in rules if rule["name"] == name)


@pytest.fixture(scope="module")
def postgres():
    with Postgres() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def site(program, database):
    pool = CheckedPool(program, "--workers", "2", database=database)
    with open_site(pool, server=location() + metrics_location()) as opened:
        yield opened


@pytest.fixture(scope="module")
def prometheus(site):
    with Prometheus(site.nginx.port) as server:
        yield server


def promtool(*arguments, directory=ROOT / "conf", text=None):
    done = subprocess.run(["promtool", *arguments], cwd=directory, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    # promtool warns of bad style, and succeeds.
    assert "error" not in done.stderr.lower() and not (text and done.stderr), done.stderr


def test_the_text_is_sound(site):
    site.http.ask(new_session(), new_url())
    promtool("check", "metrics", text=site.http.get("/metrics").body.decode())


def test_the_alerts_are_sound():
    promtool("check", "rules", "alerts.yml")


def test_when_there_is_an_alert(tmp_path):
    shutil.copy(ROOT / "conf/alerts.yml", tmp_path)
    shutil.copy(ROOT / "tests/e2e/alerts_test.yml", tmp_path)
    promtool("test", "rules", "alerts_test.yml", directory=tmp_path)


def test_the_dashboard_has_something_to_show(site, prometheus, merchant):
    """Each of its queries, asked of a Prometheus that has scraped a pool with some traffic."""
    wait_until(lambda: prometheus.query("up") == [1], 20, "the first scrape")
    until = time.monotonic() + 4
    while time.monotonic() < until:
        session, url = new_session(), new_url()
        order = merchant.contract(session, url)
        waiting = site.http.later(session, url, timeout_ms=5000)
        merchant.pay(order)
        assert waiting.result().status == 200
        assert site.http.ask(session, url).status == 200
    for query in dashboard_queries():
        found = prometheus.query(query.replace("$__rate_interval", "10s").replace("$instance", ".*"))
        assert found and not any(math.isnan(value) for value in found), query
    assert prometheus.query('sum(merchant_sessions_requests_total{status="200"})')[0] > 4


def test_an_alert_in_earnest(site, prometheus, postgres):
    site.pool.expect("database: ")
    names = ["MerchantSessionsDatabaseFails", "MerchantSessionsTooManyWait", "MerchantSessionsWorkersDie"]
    assert [prometheus.alert(name) for name in names] == 3 * ["inactive"]
    postgres.stop()
    try:
        wait_until(lambda: prometheus.alert(names[0]) == "pending", 10, "an alert")
    finally:
        postgres.start()
    wait_until(lambda: prometheus.alert(names[0]) == "inactive", 10, "the end of the alert")
