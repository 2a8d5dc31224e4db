# SPDX-License-Identifier: GPL-3.0-or-later
"""Hostile peers and clients in the long form: see tests/hostile/run."""

import argparse
import pathlib
import sys

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "hostile"), str(TESTS), str(TESTS / "e2e")]

import mutations  # noqa: E402
import peers  # noqa: E402
from good import attacked  # noqa: E402

RATIO_ALLOWED = 2.0


def parse_arguments():
    parser = argparse.ArgumentParser(prog="tests/hostile/run", description="Hostile peers against the pool.")
    parser.add_argument("--program", required=True, help="the program with AddressSanitizer")
    parser.add_argument("--plain", required=True, help="the program as a release build")
    parser.add_argument("--streams", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    kinds = [kind.__name__.lower() for kind in peers.KINDS]
    parser.add_argument("--only", nargs="*", choices=["mutations", *kinds], default=["mutations", *kinds])
    return parser.parse_args()


def main():
    chosen = parse_arguments()
    mutate = pathlib.Path(chosen.plain).parents[1] / "tests/hostile/mutate"
    slow = []
    if "mutations" in chosen.only:
        with attacked(chosen.program, env=mutations.SMALL_QUARANTINE) as victim:
            print(f"Mutations, seed {chosen.seed}: "
                  f"{mutations.run(victim, mutate, chosen.streams, chosen.seed)}", flush=True)
    for kind in peers.KINDS:
        if kind.__name__.lower() in chosen.only:
            with attacked(chosen.plain) as victim:
                ratio, line = peers.run(victim, kind, chosen.seconds)
            print(line, flush=True)
            slow += [kind.__name__] * (ratio > RATIO_ALLOWED)
    if slow:
        sys.exit(f"p99 of a good client more than {RATIO_ALLOWED} times as long: {', '.join(slow)}")


main()
