# SPDX-License-Identifier: GPL-3.0-or-later
"""summary.py BUILD...: what was skipped and failed in the last `meson test` of each, and the count of all tests.

Exits with 1 if anything failed, or nothing ran.
"""

import collections
import json
import pathlib
import re
import sys
import xml.etree.ElementTree

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
# What meson says of a test that says nothing of its own parts.
OUTCOMES = {"OK": PASSED, "SKIP": SKIPPED}
TAP = re.compile(r"^(not )?ok \d+(?: - )?(.*)$", re.MULTILINE)


def tap_results(program, output):
    for failed, name in TAP.findall(output):
        yield FAILED if failed else PASSED, f"{program}: {name}", ""


def junit_results(path):
    for case in xml.etree.ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname')}: {case.get('name')}"
        outcome = {child.tag: child.get("message", "") for child in case}
        if "skipped" in outcome:
            yield SKIPPED, name, outcome["skipped"]
        else:
            yield FAILED if outcome.keys() & {"failure", "error"} else PASSED, name, ""


def results(build):
    for line in (build / "meson-logs/testlog.json").read_text().splitlines():
        test = json.loads(line)
        name = test["name"].split(" / ")[-1]
        junit = build / f"tests/{name}.xml"
        found = list(junit_results(junit) if junit.exists() else tap_results(name, test["stdout"]))
        yield from found
        outcome = OUTCOMES.get(test["result"], FAILED)
        # A program may die before it tells which of its tests has failed.
        if not found or outcome == FAILED and not any(part == FAILED for part, *_ in found):
            yield outcome, f"{build.name}: {name}", test["stdout"].strip() if outcome == SKIPPED else test["result"]


def main():
    found = [result for build in sys.argv[1:] for result in results(pathlib.Path(build))]
    for name in [name for outcome, name, _ in found if outcome == FAILED]:
        print(f"failed: {name}")
    skipped = collections.Counter(reason for outcome, _, reason in found if outcome == SKIPPED)
    for reason, number in skipped.items():
        print(f"skipped: {number}, because {reason}")
    count = {wanted: sum(1 for outcome, *_ in found if outcome == wanted) for wanted in (PASSED, FAILED)}
    print(f"{count[PASSED]} passed, {count[FAILED]} failed")
    sys.exit(count[FAILED] > 0 or count[PASSED] == 0)


main()
