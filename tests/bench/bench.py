# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure this program side by side with what a user would run in its place, and print the tables.

Everything runs on loopback, with servers and a database of its own, and is gone afterwards.
"""

import argparse
import contextlib
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import candidates
import parked
import plain
import report
import servers
import sharing
import shop
import split
import waiting

SECTIONS = [*candidates.DESCRIPTIONS, "waiting", "parked", "sharing", "split", "start"]
LEVELS = [1_000, 10_000]
FAR_LEVEL = 1_000
# What is built for a section; the program itself is for all.
PROGRAMS = {"limit": "bench-limit", "echo": "bench-echo", "textbook": "bench-textbook", "probe": "bench-probe",
            "waiting": "waiters", "parked": "waiters"}
PATHS = 20_000
# nginx takes two for each that waits.
DESCRIPTORS = 20_000
TIME_LIMIT = 20 * 60


def parse_arguments():
    parser = argparse.ArgumentParser(prog="tests/bench/run", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, metavar="N", help="of all candidates in turn (default 5)")
    parser.add_argument("--seconds", type=int, metavar="N", help="for each figure (default 3)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="NAME",
                        help="measure only these of: " + " ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="one short round and fewer waiting, to see that all works")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 5)
    arguments.seconds = arguments.seconds or (2 if arguments.quick else 3)
    return arguments


def say(text):
    print(text, file=sys.stderr, flush=True)


def allow_descriptors(wanted):
    """As many descriptors for each process as we may have, at most `wanted`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < wanted:
        with contextlib.suppress(ValueError, PermissionError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def stop_in_time():
    """End by an exception, so that every server is taken down."""
    def end(number, _):
        raise SystemExit(f"ended by {signal.Signals(number).name}")
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, end)
    signal.alarm(TIME_LIMIT)


@contextlib.contextmanager
def release_build(sections):
    programs = {"merchant-sessions.fcgi", *(PROGRAMS[section] for section in sections if section in PROGRAMS)}
    with tempfile.TemporaryDirectory(prefix="bench-build-") as directory:
        _meson("setup", "--buildtype=release", directory, servers.ROOT)
        _meson("compile", "-C", directory, *programs)
        yield pathlib.Path(directory)


def _meson(*command):
    subprocess.run(["meson", *command], check=True, stdout=sys.stderr)


def measure_plain(figures, arguments, build, database, paths):
    for number in range(arguments.rounds):
        for name in [name for name in candidates.DESCRIPTIONS if name in arguments.only]:
            say(f"round {number + 1} of {arguments.rounds}: {name}")
            if name == "raw":
                figures.add(name, report.KEEP, plain.measure_raw(database, arguments.seconds))
                continue
            for mode, keep in ((report.KEEP, True), (report.NEW, False)):
                if name == "probe":
                    batch = round(figures.latest("this", mode, "batch") or plain.PROBE_BATCH)
                    figures.add(name, mode, plain.measure_probe(build, database, batch, arguments.seconds))
                    continue
                figures.add(name, mode, plain.measure(name, keep, build, database, paths, arguments.seconds))


def measure_waiting(arguments, build, database):
    """The scenes of long polls without a web server, and the one with a distant database."""
    if "waiting" not in arguments.only:
        return [], None
    scenes = []
    for everybody in (False, True):
        for count in LEVELS[:1] if everybody and arguments.quick else LEVELS:
            say(f"waiting: {count:,}, {'all' if everybody else 'few'} claimed")
            scenes.append(waiting.measure(count, everybody, build, database, arguments.quick))
    say(f"waiting: {FAR_LEVEL:,}, a distant database")
    return scenes, waiting.measure_far(FAR_LEVEL, build, database, arguments.quick)


def measure_parked(arguments, build, database, paths):
    if "parked" not in arguments.only:
        return []
    levels = []
    for count in LEVELS[1:] if arguments.quick else LEVELS:
        say(f"parked: {count:,}")
        levels.append(parked.measure(count, build, database, paths, arguments.seconds,
                                     idle_seconds=2 if arguments.quick else 5, payments=50))
    return levels


def measure_sharing(arguments, build, database):
    if "sharing" not in arguments.only:
        return []
    say("sharing")
    return [sharing.measure(build, database) for _ in range(1 if arguments.quick else 3)]


def measure_split(arguments, build, database, paths):
    if "split" not in arguments.only:
        return []
    say("split: filling the database")
    conninfo = split.make(database.postgres)
    rounds = []
    for number in range(arguments.rounds):
        say(f"split: round {number + 1} of {arguments.rounds}")
        rounds.append(split.measure(build, database, conninfo, paths, arguments.seconds))
    return rounds


def measure_start(arguments, build, database):
    if "start" not in arguments.only:
        return []
    return [parked.first_answer(build, database) for _ in range(5)]


def print_report(arguments, figures, measured):
    print(report.head(" ".join(["tests/bench/run", *sys.argv[1:]])))
    if figures.rounds:
        for mode in (report.KEEP, report.NEW):
            print(f"Paid lookups, {plain.CONNECTIONS} connections, {mode}; "
                  f"median (min–max) of {arguments.rounds} rounds:\n")
            print(report.plain_table(figures, mode))
        print(report.legend(arguments.only))
        print(report.KEPT_CONNECTIONS)
    if measured.scenes:
        print(report.WAITING_CAPTION)
        print(report.cost_table(measured.scenes))
        print(report.latency_table(measured.scenes))
        print(report.FAR_CAPTION)
        print(report.far_table(measured.far))
    if measured.levels:
        print(report.PARKED_CAPTION)
        print(report.parked_table(measured.levels))
    if measured.sharings:
        print(report.SHARING_CAPTION)
        print(report.sharing_table(measured.sharings))
    if measured.splits:
        print(report.SPLIT_CAPTION)
        print(report.split_table(measured.splits))
    print(report.goals_table(figures, measured))


def main():
    arguments = parse_arguments()
    stop_in_time()
    allow_descriptors(DESCRIPTORS)
    with release_build(arguments.only) as build, servers.Postgres(shared_buffers="1GB", max_wal_size="4GB") as postgres:
        say("filling the database")
        database = shop.Shop(postgres)
        paths = postgres.directory / "paths"
        paths.write_text("".join(contract.path() + "\n" for contract in shop.paid(PATHS)))
        figures, measured = report.Plain(), report.Measured()
        try:
            measure_plain(figures, arguments, build, database, paths)
            measured.starts = measure_start(arguments, build, database)
            measured.scenes, measured.far = measure_waiting(arguments, build, database)
            measured.levels = measure_parked(arguments, build, database, paths)
            measured.sharings = measure_sharing(arguments, build, database)
            measured.splits = measure_split(arguments, build, database, paths)
        finally:
            # What was measured is told also where something has failed.
            print_report(arguments, figures, measured)


if __name__ == "__main__":
    main()
