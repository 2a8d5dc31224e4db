# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables: what was measured, and the goals."""

import dataclasses
import datetime
import os
import pathlib
import statistics
import subprocess

import sharing
import split
import waiting
from candidates import DESCRIPTIONS

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
KEEP, NEW = "keep-alive to the pool", "a new connection each"
RATE_GOALS = {KEEP: {"echo": 0.85, "textbook": 2.7, "php": 4.5}, NEW: {"echo": 0.85, "textbook": 2}}
# Of the program in "limit" and of the database in "probe" together.
CPU_GOAL = 1.25
# Parked → p50 and p99 from COMMIT to the answer, in ms.
CLAIMED_GOALS = {1_000: (30, 80), 10_000: (30, 80)}
UNCLAIMED_GOALS = {1_000: (150, 300), 10_000: (900, 1600)}
# Of a core, in per cent: nothing is committed, and 100 unrelated commits a second.
IDLE_GOAL, BUSY_GOAL = 1, 15
FAR_GOAL_MS = 500
SHARING_GOAL = 0.80
# Instances → paid lookups by those of the plain layout; and the memory of a worker with all of them.
SPLIT_GOALS = {1: 0.8, 10: 0.6, 300: 0.3}
SPLIT_MEMORY_GOAL_MIB = 20

KEPT_CONNECTIONS = """\
A connection that nginx keeps is all that a blocking process (echo, textbook, php) serves until nginx closes it after
1,000 requests; the others wait that long, which the p50 hides and the p99 shows.
"""

WAITING_CAPTION = """\
Long polls parked on one worker, no web server between the client and the program. *claimed* is how many of the parked
sessions have a contract that is not paid, at any time: a transaction that pays one also claims the next. The others
have no order ({share:.0%} are claimed, at least {least}; in the last rows all are, replacements too). An answered long
poll is replaced by one of a new session. *without a claim*: one transaction adds a contract that is already paid; every
other one also removes the offer of that order. CPU is the share of a core: *backend* is the program's own backend,
*cluster* is all of PostgreSQL, the writers included. Milliseconds count from the return of COMMIT to the answer:
""".format(share=waiting.CLAIMED_SHARE, least=waiting.CLAIMED_LEAST)

FAR_CAPTION = """\
The same with {ms} ms each way between the program and the database. *after a slow batch*: the table was locked for
{seconds} s, and a payment was committed right after that:
""".format(ms=waiting.DELAY_MS, seconds=waiting.LOCK_SECONDS)

PARKED_CAPTION = """\
Long polls parked on one worker, through nginx, all of them with a contract that is not paid: nothing is paid, then a
few are, then there are fresh requests, then SIGTERM:
"""

SHARING_CAPTION = """\
{workers} workers, no web server between: {polls} long polls {pause:.0f} ms apart with --max-waiting {most}, and paid
sessions looked up, {connections} at a time. Shares of the workers, the smallest first, medians of the runs. *refused*:
how many long polls were answered at once:
""".format(workers=sharing.WORKERS, polls=sharing.LONG_POLLS, pause=sharing.LONG_POLL_PAUSE * 1000,
           most=sharing.MAX_WAITING, connections=sharing.CONNECTIONS)


SPLIT_CAPTION = f"""\
Paid lookups, {KEEP}, where each instance has a schema of its own: over some of {max(split.INSTANCES)} instances, beside
the plain layout. *worker*: memory of a worker; *backend*: of the database's process that serves it, without what is
shared:
"""


@dataclasses.dataclass
class Measured:
    """What was measured beside the paid lookups; what was not is empty."""

    starts: list = ()
    scenes: list = ()
    far: dict | None = None
    levels: list = ()
    sharings: list = ()
    splits: list = ()


class Plain:
    """The figures of all rounds: (candidate, mode) → one dict a round."""

    def __init__(self):
        self.rounds = {}

    def add(self, name, mode, figures):
        self.rounds.setdefault((name, mode), []).append(figures)

    def values(self, name, mode, figure):
        return [figures[figure] for figures in self.rounds.get((name, mode), []) if figure in figures]

    def latest(self, name, mode, figure):
        return next(reversed(self.values(name, mode, figure)), None)

    def cpu_ratios(self, mode):
        """The CPU of program and database for a paid lookup, by what it takes in any case, round by round."""
        ours = zip(self.values("this", mode, "cpu_program"), self.values("this", mode, "cpu_database"))
        needed = zip(self.values("limit", mode, "cpu_program"), self.values("probe", mode, "cpu_database"))
        return [sum(our) / sum(least) for our, least in zip(ours, needed)]

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
             "CPU s per 10,000: web server", "program", "database", "per statement", "failed"]]
    for name in DESCRIPTIONS:
        def cell(figure, form):
            return spread(plain.values(name, mode, figure), form)
        if plain.values(name, mode, "rate"):
            ratio = "" if name == "this" else spread(plain.ratios(name, mode, "rate"), ".2f")
            rows.append([name, ratio, cell("rate", ",.0f"), cell("p50", ".2f"), cell("p99", ".2f"), cell("max", ".0f"),
                         cell("cpu_web", ".2f"), cell("cpu_program", ".2f"), cell("cpu_database", ".2f"),
                         cell("batch", ".1f"), sum(plain.values(name, mode, "errors"))])
    return table(*rows)


def legend(names):
    return "".join(f"- *{name}*: {text}\n" for name, text in DESCRIPTIONS.items() if name in names)


def _p50_p99(latencies):
    return [f"{percentile(latencies, percent):.0f}" for percent in (50, 99)] if latencies else ["–", "–"]


def cost_table(scenes):
    rows = [["parked", "claimed", "nothing committed: backend", "cluster", "program",
             f"{waiting.COMMITS_PER_SECOND} unrelated commits/s: backend", "cluster", "program"]]
    for scene in scenes:
        costs = [cell for cost in (scene["idle"], scene["busy"])
                 for cell in (f"{cost[part]:.1%}" for part in ("backend", "cluster", "program"))]
        rows.append([f"{scene['parked']:,}", f"{scene['claimed']:,}", *costs])
    return table(*rows)


def latency_table(scenes):
    rows = [["parked", "claimed", "claimed, then paid, nothing else commits: p50 ms", "p99 ms",
             "among unrelated commits: p50 ms", "p99 ms", "without a claim, among them: p50 ms", "p99 ms",
             "unrelated commits/s"]]
    for scene in scenes:
        rows.append([f"{scene['parked']:,}", f"{scene['claimed']:,}", *_p50_p99(scene["alone"]),
                     *_p50_p99(scene["disturbed"]), *_p50_p99(scene.get("unclaimed")), f"{scene['commits']:.0f}"])
    return table(*rows)


def far_table(far):
    row = [f"{far['parked']:,}", f"{far['claimed']:,}", *_p50_p99(far["alone"]), spread(far["after_lock"], ".0f")]
    return table(["parked", "claimed", "claimed, then paid: p50 ms", "p99 ms", "after a slow batch: ms"], row)


SHARED = {"parked": "long polls parked", "kept": "answered, kept connections",
          "new": "answered, a new connection each"}


def _evenness(sharings, what):
    """The worker with the fewest by the one with the most, run by run."""
    return [min(sharing[what]) / max(sharing[what]) for sharing in sharings]


def sharing_table(sharings):
    rows = [["shared", *(f"worker {n + 1}" for n in range(sharing.WORKERS)), "fewest ÷ most", "refused"]]
    for what, name in SHARED.items():
        shares = zip(*([count / sum(run[what]) for count in sorted(run[what])] for run in sharings))
        refused = statistics.median(run["refused"] for run in sharings) if what == "parked" else 0
        rows.append([name, *(f"{statistics.median(share):.0%}" for share in shares),
                     spread(_evenness(sharings, what), ".2f"), f"{refused:.0f}"])
    return table(*rows)


def parked_table(levels):
    rows = [["parked", "KiB each", "CPU: database", "program", "COMMIT → answer: p50 ms", "p99 ms",
             "p99 of fresh: without ms", "with ms", "SIGTERM → last answer ms"]]
    for level in levels:
        latencies = level["commit_to_answer"]
        rows.append([f"{level['count']:,}", f"{level['bytes'] / 1024:.1f}",
                     f"{level['cpu_database']:.1%}", f"{level['cpu_program']:.1%}",
                     f"{percentile(latencies, 50):.0f}", f"{percentile(latencies, 99):.0f}",
                     spread(level["p99_without"], ".2f"), spread(level["p99_with"], ".2f"), f"{level['stop']:.0f}"])
    return table(*rows)


def goals_table(plain, measured):
    rows = [*_rate_goals(plain), *_cpu_goals(plain), *_latency_goals(plain), *_waiting_goals(measured.scenes),
            *_far_goals(measured.far), *_parked_goals(measured.levels), *_sharing_goals(measured.sharings),
            *_split_goals(measured.splits),
            _goal("start until the first answer", measured.starts, "≤", 100, ".0f", " ms")]
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


def _cpu_goals(plain):
    for mode in (KEEP, NEW):
        yield _goal(f"CPU of program and database per paid lookup, {mode}", plain.cpu_ratios(mode), "≤", CPU_GOAL,
                    unit=" × (limit + probe)")


def _latency_goals(plain):
    for mode in (KEEP, NEW):
        for name in ("textbook", "php"):
            yield _goal(f"p99 at 64 connections, {mode}", plain.ratios(name, mode, "p99"), "≤", 1, unit=f" × {name}")


def _waiting_goals(scenes):
    def at(parked, figure):
        return [figure(scene) for scene in scenes if scene["parked"] == parked and scene["claimed"] < parked]

    for when, what, goal in (("nothing committed", "idle", IDLE_GOAL), ("100 unrelated commits/s", "busy", BUSY_GOAL)):
        for parked in CLAIMED_GOALS:
            share = at(parked, lambda scene, what=what: scene[what]["backend"] * 100)
            yield _goal(f"the database's backend, {when}, {parked:,} parked", share, "≤", goal, ".1f", " % of a core")
    for how, what, goals in (("claimed, then paid", "alone", CLAIMED_GOALS),
                             ("claimed, then paid among 100 commits/s", "disturbed", CLAIMED_GOALS),
                             ("paid without a claim among 100 commits/s", "unclaimed", UNCLAIMED_GOALS)):
        for parked, bounds in goals.items():
            for percent, bound in zip((50, 99), bounds):
                latency = at(parked, lambda scene, what=what, percent=percent: percentile(scene[what], percent))
                name = f"COMMIT → answer, {how}, {parked:,} parked, p{percent}"
                yield _goal(name, latency, "≤", bound, ".0f", " ms")


def _far_goals(far):
    where = f"COMMIT → answer, 1,000 parked, database {waiting.DELAY_MS} ms away"
    yield _goal(f"{where}, p99", [percentile(far["alone"], 99)] if far else [], "≤", FAR_GOAL_MS, ".0f", " ms")
    yield _goal(f"{where}, after a slow batch", far["after_lock"] if far else [], "≤", FAR_GOAL_MS, ".0f", " ms")


def _sharing_goals(sharings):
    for what, name in SHARED.items():
        yield _goal(f"{sharing.WORKERS} workers, {name}: fewest ÷ most", _evenness(sharings, what), "≥", SHARING_GOAL)


def split_table(rounds):
    rows = []
    for count in [0, *split.INSTANCES]:
        figures = [figures[count] for figures in rounds]
        mib = [[figure[what] / 2**20 for figure in figures] for what in ("worker", "backend")]
        rows.append([count or "plain", spread([figure["rate"] for figure in figures], ",.0f"),
                     spread(_split_ratios(rounds, count), ".2f") if count else "",
                     *(spread([figure[what] for figure in figures], ".2f")
                       for what in ("p50", "p99", "cpu_program", "cpu_database")),
                     *(spread(values, ".1f") for values in mib), sum(figure["errors"] for figure in figures)])
    return table(["instances", "requests/s", "÷ plain", "p50 ms", "p99 ms", "CPU s per 10,000: program", "database",
                  "worker MiB", "backend MiB", "failed"], *rows)


def _split_ratios(rounds, count):
    return [figures[count]["rate"] / figures[0]["rate"] for figures in rounds]


def _split_goals(rounds):
    for count, bound in SPLIT_GOALS.items():
        yield _goal(f"paid lookups/s over {count} instances with a schema each", _split_ratios(rounds, count),
                    "≥", bound, unit=" × plain layout")
    most = max(split.INSTANCES)
    yield _goal(f"memory of a worker with {most} of them", [figures[most]["worker"] / 2**20 for figures in rounds], "≤",
                SPLIT_MEMORY_GOAL_MIB, ".0f", " MiB")


def _parked_goals(levels):
    def at(count, figure):
        return [figure(level) for level in levels if level["count"] == count]

    def kib(level):
        return level["bytes"] / 1024

    yield _goal("memory of a parked request, 10,000 parked", at(10_000, kib), "≤", 8, ".1f", " KiB")
    fresh = [parked / bare for level in levels if level["count"] == 10_000
             for parked, bare in zip(level["p99_with"], level["p99_without"])]
    yield _goal("p99 of fresh requests with 10,000 parked", fresh, "≤", 2, unit=" × without")
