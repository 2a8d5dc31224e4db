# SPDX-License-Identifier: GPL-3.0-or-later
"""A few seeds of tests/chaos, and its judge tried on histories made by hand."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "chaos"))

import walk as chaos  # noqa: E402
from faults import unexpected_lines  # noqa: E402
from history import Asked, Found, Judge, Kind, Order, Outcome, Rules, Span, Timeline, expected  # noqa: E402
from servers import LOG_LINE  # noqa: E402

OLD, NEW = Order("old", 1, 1), Order("new", 2, 2)
PAID_OLD, PAID_NEW = Order("old", 1, 1, paid=True), Order("new", 2, 2, paid=True)
TIMEOUT = 1.0


# What is right for a state of the tables.

@pytest.mark.parametrize("orders,found", [
    ((), Found(404)), ((OLD,), Found(202, "old")), ((OLD, NEW), Found(202, "new")), ((PAID_OLD, NEW), Found(200, "old")),
    ((PAID_OLD, PAID_NEW), Found(200, "new")), ((Order("a", 5, 1), Order("b", 5, 2)), Found(202, "b")),
    ((Order("a", 6, 1), Order("b", 5, 2)), Found(202, "a"))])
def test_expected(orders, found):
    assert expected(orders) == found
    assert expected(orders[::-1]) == found


# The judge. An order is there from 10 on, and paid at 20; each commit took 0.2 s.

def history(**spans):
    timeline = Timeline()
    timeline.commit("key", (OLD,), 10.0, 10.2)
    timeline.commit("key", (PAID_OLD,), 20.0, 20.2)
    for kind, span in spans.items():
        timeline.spans[Kind[kind.upper()]].append(Span(*span))
    return timeline


def verdicts(sent, ended, status, order_id=None, *, wait=0.0, outcome=Outcome.ANSWERED, max_waiting=100, everything=(),
             key="key", code=None, opened=None, **options):
    names = {kind.name.lower() for kind in Kind}
    timeline = history(**{name: span for name, span in options.items() if name in names})
    asked = Asked("peer", key, wait, sent if opened is None else opened, sent, sent, ended, outcome, status,
                  code or {404: 2038, 500: 53}.get(status), order_id,
                  **{name: value for name, value in options.items() if name not in names})
    return Judge(timeline, Rules(TIMEOUT, max_waiting), [asked, *everything]).verdicts(asked)


@pytest.mark.parametrize("sent,ended,status,order_id", [
    (5, 5.1, 404, None), (11, 11.1, 202, "old"), (21, 21.1, 200, "old"),
    # While a commit is under way, either is true.
    (10.1, 10.15, 404, None), (10.1, 10.15, 202, "old"), (20.1, 20.15, 202, "old"), (20.1, 20.15, 200, "old"),
    # And so it is where the commit lies between request and answer.
    (9.9, 10.3, 404, None), (9.9, 10.3, 202, "old"), (19.9, 20.3, 202, "old")])
def test_true_answers(sent, ended, status, order_id):
    assert verdicts(sent, ended, status, order_id) == []


@pytest.mark.parametrize("sent,ended,status,order_id", [
    (5, 5.1, 202, "old"), (5, 5.1, 200, "old"), (11, 11.1, 404, None), (11, 11.1, 200, "old"), (11, 11.1, 202, "new"),
    (21, 21.1, 202, "old"), (21, 21.1, 404, None), (21, 21.1, 200, "new"), (20.21, 20.3, 202, "old"), (9.8, 9.9, 202, "old")])
def test_untrue_answers(sent, ended, status, order_id):
    text, = verdicts(sent, ended, status, order_id)
    assert "untrue" in text


def test_the_last_lookup_is_one_at_the_deadline():
    """An order that came while it waited: what was known at the beginning will not do."""
    assert verdicts(8, 11, 202, "old", wait=3.0) == []
    assert "untrue" in verdicts(8, 11, 404, wait=3.0)[0]
    assert verdicts(8, 10.5, 404, wait=3.0, leaving=(10.3, 10.6)) == []
    assert verdicts(8, 11, 404, wait=3.0, trouble=(8.1, 10.6)) == []
    assert "untrue" in verdicts(8, 11, 404, wait=3.0, trouble=(9.5, 10.6))[0]


def test_early_answers():
    assert "early" in verdicts(11, 12, 202, "old", wait=3.0)[0]
    assert verdicts(11, 12, 202, "old", wait=3.0, leaving=(11.9, 12.5)) == []
    assert verdicts(11, 12, 202, "old", wait=3.0, short=(11.9, 12.5)) == []
    assert verdicts(11, 12, 202, "old", wait=3.0, may_be_early=True) == []
    others = [Asked("peer", "other", 3.0, 11, 11, 11, 13) for _ in range(9)]
    assert verdicts(11, 12, 202, "old", wait=3.0, max_waiting=10, everything=others) == []
    assert "early" in verdicts(11, 12, 202, "old", wait=3.0, max_waiting=11, everything=others)[0]


def test_late_answers():
    assert verdicts(11, 15.4, 202, "old", wait=3.0) == []
    assert "later" in verdicts(11, 15.6, 202, "old", wait=3.0)[0]
    assert verdicts(11, 15.9, 202, "old", wait=3.0, trouble=(13, 13.1)) == []
    assert "later" in verdicts(11, 16.1, 202, "old", wait=3.0, trouble=(13, 13.1))[0]
    assert verdicts(11, 16.1, 202, "old", wait=3.0, stall=(12, 12.5)) == []
    assert verdicts(11, 16.1, 202, "old", wait=3.0, killed=(12, 12)) == []
    assert verdicts(11, 16.9, 202, "old", wait=3.0, trouble=(13, 14), short=(12, 15)) == []
    assert "later" in verdicts(11, 17.1, 202, "old", trouble=(13, 14), short=(12, 15))[0]
    assert "no answer" in verdicts(11, 30, 0, wait=3.0, outcome=Outcome.SILENT)


def test_payment_is_told_soon():
    assert verdicts(15, 22.1, 200, "old", wait=10.0) == []
    assert "healthy" in verdicts(15, 22.3, 200, "old", wait=10.0)[0]
    assert any("healthy" in text for text in verdicts(19, 22.4, 500, wait=1.0, trouble=(22.3, 22.4)))
    assert verdicts(15, 24.9, 200, "old", wait=10.0, trouble=(20.1, 23)) == []
    assert "healthy" in verdicts(15, 25.1, 200, "old", wait=10.0, trouble=(20.1, 23))[0]
    assert verdicts(15, 25.1, 200, "old", wait=10.0, trouble=(20.1, 22), frozen=(23.9, 24)) == []


def test_failures():
    assert "well" in verdicts(11, 12, 500)[0]
    assert verdicts(11, 12, 500, trouble=(11.5, 11.6)) == []
    assert verdicts(11, 12, 500, trouble=(9, 10.1)) == []
    assert "well" in verdicts(11, 12.2, 500, trouble=(9, 10.1))[0]
    assert "patience" in verdicts(11, 11.5, 500, trouble=(11.1, 11.6))[0]


def test_failures_of_those_who_wait():
    """A second of a healthy database, and it was parked: it has --db-timeout from its deadline on."""
    assert verdicts(11, 15, 500, wait=3.0, trouble=(12.1, 16)) == []
    assert "patience" in verdicts(11, 14.2, 500, wait=3.0, trouble=(12.1, 16))[0]
    assert verdicts(11, 12.1, 500, wait=3.0, trouble=(11.1, 16)) == []
    assert verdicts(11, 11.5, 500, wait=3.0, trouble=(11.1, 16), leaving=(11.4, 12)) == []
    assert "known" in verdicts(11, 13, 500, wait=3.0, trouble=(12.1, 16), leaving=(12.9, 14))[0]
    assert verdicts(11, 13, 500, wait=3.0, trouble=(12.1, 16), leaving=(12.9, 14), killed=(12.5, 12.5)) == []


@pytest.mark.parametrize("status,outcome,nginx", [(502, Outcome.ANSWERED, True), (0, Outcome.CLOSED, False)])
def test_lost_requests(status, outcome, nginx):
    lost = {"status": status, "outcome": outcome, "nginx": nginx, "wait": 3.0}
    assert len(verdicts(11, 12, **lost)) == 1
    assert verdicts(11, 12, killed=(11.9, 11.9), **lost) == []
    assert len(verdicts(11, 13.5, killed=(11.9, 11.9), **lost)) == 1
    assert verdicts(11, 12, down=(10.5, 12.5), **lost) == []
    assert len(verdicts(11, 12, leaving=(11.9, 12.5), **lost)) == 1


def test_what_was_sent_before_the_pool_was_told_to_stop():
    lost = {"status": 0, "outcome": Outcome.CLOSED, "wait": 3.0}
    assert len(verdicts(11, 12, down=(11.01, 12.5), **lost)) == 1
    assert verdicts(11.02, 12, down=(11.01, 12.5), **lost) == []
    assert verdicts(11, 12, down=(11.01, 12.5), short=(11, 12), **lost) == []


def test_a_peer_that_was_silent_too_long():
    lost = {"status": 0, "outcome": Outcome.CLOSED, "wait": 3.0}
    assert verdicts(16, 16.1, opened=10.9, **lost) == []
    assert len(verdicts(16, 16.1, opened=11.2, **lost)) == 1
    assert verdicts(16, 16.1, opened=14.4, leaving=(15, 16.1), **lost) == []
    assert len(verdicts(16, 16.1, opened=14.8, leaving=(15, 16.1), **lost)) == 1
    assert verdicts(16, 16.1, opened=15.7, short=(15, 16.1), **lost) == []
    assert len(verdicts(16, 16.1, opened=15.9, short=(15, 16.1), **lost)) == 1


def test_patience_that_ends_while_workers_are_told_to_stop():
    asked = {"sent": 11, "status": 500, "wait": 3.0, "trouble": (13.9, 17)}
    end = 14 + TIMEOUT + 0.01
    assert verdicts(ended=end, leaving=(14.5, 17), **asked) == []
    assert len(verdicts(ended=end - 0.5, leaving=(14.5, 17), **asked)) == 1
    assert len(verdicts(ended=end, leaving=(14.2, 17), down=(14.2, 17), **asked)) == 1


def test_kept_connections():
    lost = {"status": 0, "outcome": Outcome.CLOSED, "reused": True}
    assert verdicts(11, 11, opened=8, leaving=(10, 10.1), **lost) == []
    assert verdicts(11, 11, opened=8, killed=(9, 9), **lost) == []
    assert len(verdicts(11, 11, opened=10, killed=(9, 9), **lost)) == 1


def test_refused_connections():
    refused = {"status": 0, "outcome": Outcome.REFUSED}
    assert verdicts(11, 11, **refused) == ["connection refused"]
    assert verdicts(11, 11, down=(10, 12), **refused) == []


def test_fixed_answers():
    assert verdicts(11, 11.1, 400, code=25, fixed=(400, 25)) == []
    assert len(verdicts(11, 11.1, 400, code=26, fixed=(400, 25))) == 1
    assert len(verdicts(11, 11.1, 500, fixed=(400, 25), trouble=(9, 12))) == 1
    assert verdicts(11, 12.1, 500, fixed=(404, 2000), trouble=(9, 13)) == []
    assert len(verdicts(11, 11.1, 404, code=2000)) == 1


def test_lines_of_the_log():
    lines = ["merchant-sessions[1] info: pool of 2 workers", "merchant-sessions[1] warning: database: away",
             "merchant-sessions[1] info: of s3cr3t", "==1==ERROR: AddressSanitizer"]
    assert list(unexpected_lines(lines, [r"warning: database"], "s3cr3t", LOG_LINE)) == lines[2:]
    assert list(unexpected_lines(lines, [], "s3cr3t", LOG_LINE)) == lines[1:]


# The walk

def test_a_seed_makes_the_same_plan():
    one, two, other = (chaos.make_plan(seed, 5) for seed in (1, 1, 2))
    assert (one.setup, one.faults, one.peers, one.keys) == (two.setup, two.faults, two.peers, two.keys)
    assert [(deed.at, deed.name, deed.key) for deed in one.deeds] == [(deed.at, deed.name, deed.key) for deed in two.deeds]
    assert one.peers != other.peers
    fewer = chaos.make_plan(1, 5, chaos.KINDS - {"shopper"})
    assert [event for event in one.peers if event[1] != "shopper"] == fewer.peers


@pytest.fixture(scope="module")
def stage():
    with chaos.Stage() as opened:
        yield opened


@pytest.mark.parametrize("seed", [1, 4, 5])
def test_walk(program, stage, seed):
    walk = chaos.walk_seed(program, seed, stage, seconds=5)
    if walk.violations:
        chaos.tell(walk)
    assert walk.violations == []
    assert len(walk.asked) > 50
