# SPDX-License-Identifier: GPL-3.0-or-later
"""table.py --program PROGRAM --plain PROGRAM [--only NAME,...] [--seconds N] [--list]: a row for each fault. Exits with 1 at a violation."""

import argparse
import sys

import database  # noqa: F401
import pool  # noqa: F401
from frame import FAULTS, LAYOUTS_TRIED, Row, raise_limits


def read_arguments():
    parser = argparse.ArgumentParser(prog="tests/faults/run")
    parser.add_argument("--program", required=True)
    parser.add_argument("--plain", required=True, metavar="PROGRAM", help="one without sanitizers")
    parser.add_argument("--seconds", type=float, default=10, help="before and after each fault")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(FAULTS), metavar="NAME,...")
    parser.add_argument("--layout", choices=LAYOUTS_TRIED, default="shared", help="of the tables")
    parser.add_argument("--list", action="store_true", help="the faults, and what each does")
    arguments = parser.parse_args()
    unknown = set(arguments.only) - set(FAULTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return arguments


def line(cells):
    return "| " + " | ".join(map(str, cells)) + " |"


def main():
    arguments = read_arguments()
    if arguments.list:
        for name, chosen in FAULTS.items():
            print(f"{name}: {' '.join(chosen.run.__doc__.split())}")
        return
    raise_limits()
    print(line(Row.HEAD), line("-" for _ in Row.HEAD), sep="\n", flush=True)
    violations = 0
    for name in arguments.only:
        if arguments.layout not in FAULTS[name].layouts:
            continue
        program = arguments.plain if FAULTS[name].stage.plain else arguments.program
        row = Row(program, FAULTS[name], arguments.seconds, arguments.layout)
        row.run()
        print(line(row.cells()), flush=True)
        violations += len(row.violations)
        if row.violations:
            row.tell()
    sys.exit(violations > 0)


if __name__ == "__main__":
    main()
