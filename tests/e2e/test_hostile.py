# SPDX-License-Identifier: GPL-3.0-or-later
"""tests/hostile for some seconds: a good client is answered all along, nothing is left behind. Times are not judged here."""

import os
import pathlib
import sys

import pytest

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "hostile"))

import mutations  # noqa: E402
import peers  # noqa: E402
from good import attacked  # noqa: E402


@pytest.fixture(scope="module")
def victim(program):
    with attacked(program, env=mutations.SMALL_QUARANTINE) as started:
        yield started


def test_mutations(victim):
    mutate = os.environ.get("MERCHANT_SESSIONS_MUTATE")
    if not mutate:
        pytest.skip("MERCHANT_SESSIONS_MUTATE does not name the program of mutate.c")
    report = mutations.run(victim, mutate, streams=8000, seed=os.getpid())
    assert report.answers > 100
    assert set(report.records) == {3, 6, 10, 11}


@pytest.mark.parametrize("kind", peers.KINDS, ids=lambda kind: kind.__name__)
def test_peers(victim, kind):
    peers.run(victim, kind, seconds=0.5, pairs=1, part=0.1, bytes_allowed=mutations.BYTES_ALLOWED)
