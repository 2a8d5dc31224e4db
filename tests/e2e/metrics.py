# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading Prometheus' text format, and what is shipped for it in conf/."""

import json
import re

from servers import ROOT, location

SAMPLE = re.compile(r"([a-z_]+(?:\{[^}]*\})?) (\S+)")
PREFIX = "merchant_sessions_"


def metrics_location():
    """The location that conf/nginx-location.conf has in a comment."""
    found = re.search(r"^# location = /metrics \{$.*?^# \}$", location(), re.MULTILINE | re.DOTALL)
    return re.sub(r"^# ?", "", found[0], flags=re.MULTILINE)


class Samples(dict):
    """The samples of a text by name and labels, without PREFIX: samples['workers'], samples['lookups_total{question="payment"}']."""

    def __init__(self, text):
        super().__init__()
        self.types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
        for line in text.splitlines():
            if line.startswith("#"):
                continue
            name, value = SAMPLE.fullmatch(line).groups()
            assert name.startswith(PREFIX) and name not in self, line
            self[name[len(PREFIX):]] = float(value)

    def answers(self):
        """The number of answers by status and code, without zeros: {(200, 0): 3, …}."""
        found = {}
        for name, value in self.items():
            labels = re.fullmatch(r'requests_total\{status="(\d+)",code="(\d+)"\}', name)
            if labels and value:
                found[int(labels[1]), int(labels[2])] = int(value)
        return found

    def counters(self):
        """The samples that must never decrease."""
        gauges = {name[len(PREFIX):] for name, kind in self.types.items() if kind == "gauge"}
        return {name: value for name, value in self.items() if name.split("{")[0] not in gauges}


def dashboard_queries():
    """The queries of conf/grafana.json."""
    dashboard = json.loads((ROOT / "conf/grafana.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def names_in(query):
    return set(re.findall(PREFIX + r"\w+", query))
