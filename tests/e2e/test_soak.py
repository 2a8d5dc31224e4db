# SPDX-License-Identifier: GPL-3.0-or-later
"""tests/soak for some seconds, and what it judges by tried on made-up samples.

With sanitizers memory says less: no more is checked than that nothing grows by megabytes.
"""

import dataclasses
import itertools
import pathlib
import random
import shutil
import sys
import threading

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "soak"))

import soak as long_run  # noqa: E402
import verdict  # noqa: E402
from faults import Database  # noqa: E402
from history import Timeline, now  # noqa: E402
from load import Catalogue, Deeds, percentile  # noqa: E402
from merchant import MARKER  # noqa: E402
from shop import Deed, Merchant  # noqa: E402

MEGABYTES = 4096  # KiB
SECONDS = 12


# The verdict

def rows(column, *values):
    """A sample each second."""
    return [{"seconds": second, column: value} for second, value in enumerate(values)]


def growth_of(column, *values):
    found, = (growth for growth in verdict.growths(rows(column, *values), len(values), len(values) / 2, 2)
              if growth.bound.column == column)
    return found


@pytest.mark.parametrize("values,excessive", [
    # What it takes at first does not count, nor does what it takes for a moment.
    ([100] * 10 + [900] * 30, False), ([900] * 39 + [9000], False), ([9000] * 20 + [100] * 20, False),
    ([900] * 25 + [1400] * 15, False), ([900] * 25 + [1413] * 15, True), (list(range(0, 4000, 100)), True),
    ([None] * 25 + [900] * 15, True), ([None] * 40, True)])
def test_growth(values, excessive):
    assert growth_of("steady_worker1_own", *values).excessive == excessive


def test_growth_in_the_calm_part():
    """Its quarters are those of the second half here."""
    assert not growth_of("database_backend_own_max", *[0] * 20, *[5000] * 20).excessive
    assert growth_of("database_backend_own_max", *[0] * 20, *[1000] * 10, *[2025] * 10).excessive


def test_percentiles():
    assert percentile([0.001 * n for n in range(101)], 99) == 99
    assert percentile([], 50) is None


# The plan

@pytest.mark.parametrize("seconds", [SECONDS, 180, 3600])
def test_plan(seconds):
    plan = long_run.make_plan(random.Random(1), seconds)
    for track, kinds in long_run.FAULTS.items():
        assert plan[track] == sorted(plan[track], key=lambda event: event[0])
        for kind in kinds:
            assert sum(event[1] == kind for event in plan[track]) >= 2
    ends_backends = [at for at, kind, _ in plan[Database] if kind in ("restart", "terminate")]
    assert max(ends_backends) < long_run.CALM_FROM * seconds


def test_deeds_come_in_the_order_of_time():
    deeds, done = Deeds(), []
    thread = threading.Thread(target=lambda: done.extend(itertools.islice(deeds, 3)))
    thread.start()
    late, soon, past = (Deed(now() + later, "", None, "", "", ()) for later in (0.3, 0.1, -1))
    deeds.add([late, past])
    deeds.add([soon])
    thread.join(10)
    assert done == [past, soon, late]
    deeds.close()
    assert list(deeds) == []


def test_requests_of_the_bulk():
    catalogue = Catalogue(Merchant(random.Random(1), f"{MARKER}-", 1), Timeline())
    assert {request.status for request in catalogue.requests} == {200, 202, 400, 404}
    # Two different ones that are the same would not be noticed if they were mixed up.
    assert len({request.uri for request in catalogue.requests}) == len(catalogue.requests)


# The run

def grows(growth):
    """In so short a run: no part is calm for long, and workers that leave are there most of the time."""
    more = MEGABYTES if growth.bound.column.endswith("_own") else long_run.WORKERS
    bound = dataclasses.replace(growth.bound, growth=growth.bound.growth + more)
    return not bound.calm and dataclasses.replace(growth, bound=bound).excessive


def remove_orders_after_write(catalogue, sessions):
    """Behind the driver's back: what is answered for these sessions is untrue, as far as it knows."""
    write = catalogue.write

    def write_and_remove(postgres, db):
        write(postgres, db)
        postgres.psql(f"DELETE FROM merchant.merchant_contract_terms WHERE session_id LIKE '{sessions}%'", db)

    catalogue.write = write_and_remove


def test_run(program, tmp_path, monkeypatch):
    """All is well, but for the sessions whose orders are gone."""
    # AddressSanitizer keeps what was freed, unless told otherwise.
    monkeypatch.setenv("ASAN_OPTIONS", "quarantine_size_mb=0:thread_local_quarantine_size_kb=0")
    soak = long_run.Soak(long_run.read_arguments(["--program", str(program), "--minutes", str(SECONDS / 60),
                                                  "--requests", str(100 * SECONDS), "--output", str(tmp_path)]))
    gone = f"{MARKER}-fixed/3/1"
    remove_orders_after_write(soak.catalogue, gone)
    soak.run()
    soak.print()
    assert [text for _, text in soak.timeline.violations if gone not in text] == []
    for peer in "bulk", "browser":
        assert any(f"{peer} asked for {gone}" in text and "untrue" in text for _, text in soak.timeline.violations)
    assert [growth for growth in soak.growths if grows(growth)] == []
    assert {"violations"} <= set(soak.verdict()) <= {"violations", "growth"}
    assert soak.csv.read_text().count("\n") > 20
    if shutil.which("gnuplot"):
        soak.draw()
        assert soak.curves.read_bytes().startswith(b"\x89PNG")
