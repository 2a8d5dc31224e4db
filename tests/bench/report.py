# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables: what was measured, and the goals."""

import datetime
import os
import pathlib
import statistics
import subprocess

from candidates import DESCRIPTIONS

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
KEEP, NEW = "keep-alive to the pool", "a new connection each"
POLL_INTERVAL_MS = 250
RATE_GOALS = {KEEP: {"limit": 0.80, "echo": 1.25, "textbook": 3, "php": 5}, NEW: {"echo": 0.85, "textbook": 2}}

KEPT_CONNECTIONS = """\
A connection that nginx keeps is all that a blocking process (echo, textbook, php) serves until nginx closes it after
1,000 requests; the others wait that long, which the p50 hides and the p99 shows.
"""


class Plain:
    """The figures of all rounds: (candidate, mode) → one dict a round."""

    def __init__(self):
        self.rounds = {}

    def add(self, name, mode, figures):
        self.rounds.setdefault((name, mode), []).append(figures)

    def values(self, name, mode, figure):
        return [figures[figure] for figures in self.rounds.get((name, mode), []) if figure in figures]

    def ratios(self, name, mode, figure):
        """This program's figure by that of another, round by round."""
        ours = self.values("this", mode, figure)
        return [our / their for our, their in zip(ours, self.values(name, mode, figure))]


def spread(values, form):
    if not values:
        return "–"
    text = format(statistics.median(values), form)
    if len(values) > 1:
        text += f" ({min(values):{form}}–{max(values):{form}})"
    return text


def percentile(ordered, percent):
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def table(*rows):
    rows = [list(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def head(command):
    processor = next((line.split(":")[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                      if line.startswith("model name")), os.uname().machine)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    packages = ["nginx", "libfcgi0ldbl", "libpq5", "postgresql-15", "php8.2-fpm", "wrk"]
    versions = [f"{package} {_output('dpkg-query', '-W', '-f', '${Version}', package)}" for package in packages]
    lines = [
        f"{datetime.date.today()}, {processor}, {len(os.sched_getaffinity(0))} processors, {memory:.0f} GiB, "
        f"Linux {os.uname().release}",
        f"merchant-sessions {_output('git', '-C', ROOT, 'describe', '--always', '--dirty')}, "
        "release build",
        ", ".join(versions),
    ]
    return "".join(f"- {line}\n" for line in lines) + f"- `{command}`\n"


def _output(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def plain_table(plain, mode):
    rows = [["candidate", "this ÷ it", "requests/s", "p50 ms", "p99 ms", "slowest ms",
             "CPU s per 10,000: web server", "program", "database", "failed"]]
    for name in DESCRIPTIONS:
        def cell(figure, form):
            return spread(plain.values(name, mode, figure), form)
        if plain.values(name, mode, "rate"):
            ratio = "" if name == "this" else spread(plain.ratios(name, mode, "rate"), ".2f")
            rows.append([name, ratio, cell("rate", ",.0f"), cell("p50", ".2f"), cell("p99", ".2f"), cell("max", ".0f"),
                         cell("cpu_web", ".2f"), cell("cpu_program", ".2f"), cell("cpu_database", ".2f"),
                         sum(plain.values(name, mode, "errors"))])
    return table(*rows)


def legend(names):
    return "".join(f"- *{name}*: {text}\n" for name, text in DESCRIPTIONS.items() if name in names)


def waiting_table(levels):
    rows = [["parked", "KiB each", "statements/s", "CPU: database", "program", "COMMIT → answer: p50 ms", "p99 ms",
             "p99 of fresh: without ms", "with ms", "SIGTERM → last answer ms"]]
    for level in levels:
        latencies = level["commit_to_answer"]
        rows.append([f"{level['count']:,}", f"{level['bytes'] / 1024:.1f}", f"{level['statements']:.0f}",
                     f"{level['cpu_database']:.1%}", f"{level['cpu_program']:.1%}",
                     f"{percentile(latencies, 50):.0f}", f"{percentile(latencies, 99):.0f}",
                     spread(level["p99_without"], ".2f"), spread(level["p99_with"], ".2f"), f"{level['stop']:.0f}"])
    return table(*rows)


def goals_table(plain, levels, starts):
    rows = [*_rate_goals(plain), *_latency_goals(plain), *_waiting_goals(levels),
            _goal("start until the first answer", starts, "≤", 100, ".0f", " ms")]
    return table(["figure", "goal", "measured", "reached"], *rows)


def _goal(figure, values, relation, bound, form=".2f", unit=""):
    goal = f"{relation} {bound:{form}}{unit}"
    if not values:
        return [figure, goal, "not measured", ""]
    median = statistics.median(values)
    reached = median >= bound if relation == "≥" else median <= bound
    return [figure, goal, spread(values, form) + unit, "yes" if reached else "no"]


def _rate_goals(plain):
    for mode, bounds in RATE_GOALS.items():
        for name, bound in bounds.items():
            yield _goal(f"paid lookups/s, {mode}", plain.ratios(name, mode, "rate"), "≥", bound, unit=f" × {name}")


def _latency_goals(plain):
    for mode in (KEEP, NEW):
        for name in ("textbook", "php"):
            yield _goal(f"p99 at 64 connections, {mode}", plain.ratios(name, mode, "p99"), "≤", 1, unit=f" × {name}")


def _waiting_goals(levels):
    def at(count, figure):
        return [figure(level) for level in levels if level["count"] == count]

    def kib(level):
        return level["bytes"] / 1024

    def database_percent(level):
        return level["cpu_database"] * 100

    def answer_p99(level):
        return percentile(level["commit_to_answer"], 99)

    yield _goal("memory of a parked request, 10,000 parked", at(10_000, kib), "≤", 8, ".1f", " KiB")
    yield _goal("database work for 10,000 parked", at(10_000, database_percent), "≤", 10, ".1f", " % of a core")
    fresh = [parked / bare for level in levels if level["count"] == 10_000
             for parked, bare in zip(level["p99_with"], level["p99_without"])]
    yield _goal("p99 of fresh requests with 10,000 parked", fresh, "≤", 2, unit=" × without")
    yield _goal("COMMIT → answer, p99, 1,000 parked", at(1_000, answer_p99), "≤", POLL_INTERVAL_MS + 50, ".0f", " ms")
    yield _goal("COMMIT → answer, p99, 10,000 parked", at(10_000, answer_p99), "≤", 1500, ".0f", " ms")
