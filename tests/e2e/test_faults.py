# SPDX-License-Identifier: GPL-3.0-or-later
"""Some faults of tests/faults, shortly and under a smaller load."""

import dataclasses
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "faults"))

import frame  # noqa: E402
import database  # noqa: E402, F401 - it fills frame.FAULTS
import pool  # noqa: E402, F401 - likewise


@pytest.mark.parametrize("name,layout,seconds", [
    ("backend_killed", "shared", 1.0), ("frozen_shortly", "split", 1.0),
    ("hung_up_often", "shared", 0.5), ("stopped_with_many_waiting", "shared", 0.5)])
def test_fault(program, name, layout, seconds):
    fault = frame.FAULTS[name]
    smaller = type("Smaller", (fault.stage,), {"waiting": 200})
    row = frame.Row(program, dataclasses.replace(fault, stage=smaller), seconds, layout)
    row.run()
    if row.violations:
        row.tell()
    assert row.violations == []
    assert row.waiting > 150
    assert len(row.asked) > 500
