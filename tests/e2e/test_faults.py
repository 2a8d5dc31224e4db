# SPDX-License-Identifier: GPL-3.0-or-later
"""Two faults of tests/faults, shortly and under a smaller load."""

import dataclasses
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "faults"))

import frame  # noqa: E402
import database  # noqa: E402, F401 - it fills frame.FAULTS


class Smaller(frame.Stage):
    waiting = 200


@pytest.mark.parametrize("name,layout", [("backend_killed", "shared"), ("frozen_shortly", "split")])
def test_fault(program, name, layout):
    row = frame.Row(program, dataclasses.replace(frame.FAULTS[name], stage=Smaller), 1.0, layout)
    row.run()
    if row.violations:
        row.tell()
    assert row.violations == []
    assert row.waiting > 150
    assert len(row.asked) > 500
