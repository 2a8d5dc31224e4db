# SPDX-License-Identifier: GPL-3.0-or-later
"""What happened when, and whether an answer agrees with it.

All times are seconds of time.monotonic(). Nothing is known more exactly than an interval: a commit
became visible between the moment before COMMIT was sent and the moment after it returned. So between
two commits each of which lasts a while several states are possible, and an answer is a violation only
if none of them, at any moment that the contract allows, explains it.
"""

import bisect
import collections
import copy
import contextlib
import dataclasses
import enum
import math
import time

# Limit of the time from a commit, or from the recovery of the database, to the answer.
SOON = 2.0
# What an answer may be late beyond its deadline and --db-timeout; also the time of a recovery.
GRACE = 1.0
# While all is well nobody is later than this, whatever --db-timeout is.
PROMPT = 1.5
# A request that has waited this long with a healthy database has been looked up.
LOOKED_UP = 1.0
# Clocks and timers are rounded: an answer may be early by so much.
ROUNDING = 0.05
# How long the program lets a peer be silent that has connected: mostly, while it is told to stop, and while descriptors are short. A
# driver that did not run is silent for as long.
SILENCE, SILENCE_AT_STOP, SILENCE_IN_SHORTAGE = 5.0, 1.5, 0.25
# How long a signal takes to reach every worker.
TOLD = 0.25

now = time.monotonic


@dataclasses.dataclass(frozen=True)
class Order:
    order_id: str
    creation: int  # microseconds since the epoch
    serial: int
    paid: bool = False


@dataclasses.dataclass(frozen=True)
class Found:
    """What the contract answers for one state of a key."""
    status: int
    order_id: str | None = None
    no_instance: bool = False


def expected(orders):
    """The answer for these orders of one session and URL: a paid one wins, then the newest."""
    def newest(some):
        return max(some, key=lambda order: (order.creation, order.serial)).order_id
    paid = [order for order in orders if order.paid]
    if paid:
        return Found(200, newest(paid))
    return Found(202, newest(orders)) if orders else Found(404)


class Kind(enum.Enum):
    """What a span of time is about."""
    TROUBLE = "database away, locked or paused"
    DOWN = "pool stopped, until it serves again"
    LEAVING = "workers were told to stop, until they are replaced"
    KILLED = "SIGKILL sent to a worker"
    FROZEN = "a worker is stopped by SIGSTOP"
    SHORT = "descriptors are short"
    STALL = "the machine, or this driver, did not run"
    STARTING = "a worker was started, and has to connect"


@dataclasses.dataclass(frozen=True)
class Span:
    begin: float
    end: float

    def meets(self, begin, end):
        return self.begin <= end and begin <= self.end


@dataclasses.dataclass(frozen=True)
class Commit:
    """`found` is the answer from this commit on; it became visible within [sent, done]."""
    sent: float
    done: float
    found: Found


NOTHING = Commit(-math.inf, -math.inf, expected(()))


class Timeline:
    """Everything that was done to database and pool. Appended to by several threads."""

    def __init__(self):
        self.commits = collections.defaultdict(lambda: [NOTHING])
        self.spans = collections.defaultdict(list)
        self.events = []
        self.violations = []
        self.counts = collections.Counter()

    def without(self, *kinds):
        """The same history with no spans of these kinds."""
        other = copy.copy(self)
        other.spans = collections.defaultdict(list, {kind: spans for kind, spans in self.spans.items() if kind not in kinds})
        return other

    def note(self, text):
        self.events.append((now(), text))

    def violation(self, text, at=None):
        self.violations.append((now() if at is None else at, text))

    def commit(self, key, orders, sent, done):
        self.found(key, expected(orders), sent, done)

    def found(self, key, found, sent, done):
        self.commits[key].append(Commit(sent, done, found))

    @contextlib.contextmanager
    def span(self, *kinds):
        begin = now()
        try:
            yield
        finally:
            for kind in kinds:
                self.spans[kind].append(Span(begin, now()))

    def met(self, kind, begin, end):
        """The spans of this kind that have a moment within [begin, end]."""
        return [span for span in self.spans[kind] if span.meets(begin, end)]

    def possible(self, key, begin, end):
        """The commits whose state was, or may have been, the current one at a moment within [begin, end]."""
        commits = self.commits[key]
        ends = [commit.done for commit in commits[1:]] + [math.inf]
        return [commit for commit, replaced in zip(commits, ends) if commit.sent <= end and replaced >= begin]

    def stalled(self, begin, end):
        """Seconds of [begin, end] in which nothing ran."""
        return sum(min(end, span.end) - max(begin, span.begin) for span in self.met(Kind.STALL, begin, end))

    def gaps(self, kinds, begin, end):
        """The parts of [begin, end] free of spans of these kinds. A killed worker takes a while to be replaced."""
        at = begin
        spans = [(span.begin, span.end + (GRACE if kind is Kind.KILLED else 0))
                 for kind in kinds for span in self.met(kind, begin - GRACE, end)]
        for span_begin, span_end in sorted(spans):
            if span_begin > at:
                yield Span(at, span_begin)
            at = max(at, span_end)
        if at < end:
            yield Span(at, end)


class Outcome(enum.Enum):
    ANSWERED = "answered"
    CLOSED = "closed without an answer"
    REFUSED = "connection refused"
    SILENT = "no answer while this driver waited"
    LEFT = "the peer left by itself, or broke the protocol"


@dataclasses.dataclass
class Asked:
    """A request and what became of it. `wait` is what timeout_ms and --max-wait grant, in seconds."""
    peer: str
    key: object
    wait: float
    opened: float = math.inf    # when its connection was
    sent: float = math.inf      # before the last byte was sent
    arrived: float = math.inf   # after it was sent
    ended: float = math.inf
    outcome: Outcome = Outcome.LEFT
    status: int = 0
    code: int | None = None
    order_id: str | None = None
    nginx: bool = False
    socket: int = 0             # the inode of its socket
    reused: bool = False        # on a connection that had served another request
    may_be_early: bool = False
    fixed: tuple | None = None  # (status, code) that needs no state of the database

    @property
    def deadline(self):
        return self.arrived + self.wait

    def __str__(self):
        what = f"{self.status} {self.code or self.order_id or ''}" if self.outcome is Outcome.ANSWERED else self.outcome.value
        return (f"{self.peer} asked for {self.key} at {self.sent:.3f}, wait {self.wait:.3f}: "
                f"{what.strip()} after {self.ended - self.sent:.3f} s")


@dataclasses.dataclass(frozen=True)
class Rules:
    """The options that the judgement depends on, in seconds, and what a connection to the database costs at most."""
    db_timeout: float
    max_waiting: int = 8192
    connect_cost: float = 0.0
    rounding: float = ROUNDING


class Judge:
    """`verdicts(asked)` are the violations by one request, as texts; none if all is well."""

    def __init__(self, timeline, rules, everything=()):
        self.timeline = timeline
        self.rules = rules
        self.begins = sorted(asked.sent for asked in everything if asked.wait > 0)
        self.ends = sorted(asked.ended + 0.5 for asked in everything if asked.wait > 0)

    def verdicts(self, asked):
        if asked.outcome in (Outcome.LEFT, Outcome.REFUSED):
            return self._refused(asked) if asked.outcome is Outcome.REFUSED else []
        found = [self._late(asked)]
        if asked.outcome is Outcome.CLOSED or asked.status == 502:
            found.append(self._lost(asked))
        elif asked.outcome is Outcome.ANSWERED:
            found += self._answered(asked)
        return [text for text in found if text]

    def _answered(self, asked):
        if asked.fixed:
            return [self._fixed(asked)]
        if asked.status == 500:
            return [self._failed(asked), self._slow_payment(asked)]
        if asked.status not in (200, 202, 404) or (asked.status == 404 and asked.code not in (2000, 2038)):
            return [f"an answer that the contract does not know: {asked.status}, code {asked.code}"]
        return [self._untrue(asked), self._early(asked), self._slow_payment(asked)]

    def _fixed(self, asked):
        if asked.status == 500 and asked.fixed[1] == 2000:
            return self._failed(asked)
        if (asked.status, asked.code) != asked.fixed:
            return f"{asked.status}, code {asked.code} instead of {asked.fixed}"
        return None

    # Whether it is true.

    def _untrue(self, asked):
        begin = asked.sent
        if self._undisturbed(asked):
            begin += asked.wait - self.rules.rounding
        said = Found(asked.status, asked.order_id, asked.code == 2000)
        possible = {commit.found for commit in self.timeline.possible(asked.key, min(begin, asked.ended), asked.ended)}
        if said in possible:
            return None
        return f"untrue at any moment of the last {asked.ended - begin:.3f} s: right were {sorted(map(str, possible))}"

    def _undisturbed(self, asked):
        """It was parked, and no worker left: the last lookup, which is one after the deadline, has to be the source of the answer."""
        return (asked.status != 200 and asked.ended >= asked.deadline - self.rules.rounding and not self._reason_for_early(asked)
                and not self.timeline.met(Kind.KILLED, asked.sent - GRACE, asked.ended)
                and self._known(asked, asked.sent + asked.wait))

    DISTURBING = (Kind.TROUBLE, Kind.DOWN, Kind.LEAVING, Kind.KILLED, Kind.FROZEN, Kind.STALL)

    def _healthy(self, begin, end):
        cost = self.rules.connect_cost
        kinds = self.DISTURBING + ((Kind.STARTING,) if cost else ())
        return not any(self.timeline.met(kind, begin - GRACE - cost, end) for kind in kinds)

    # Whether it came when it should.

    def _late(self, asked):
        allowed = self.rules.db_timeout + GRACE
        if self._healthy(asked.sent, asked.ended):
            allowed = min(allowed, PROMPT)
        limit = self._served_from(asked) + asked.wait + allowed + self.timeline.stalled(asked.sent, asked.ended)
        if asked.ended <= limit:
            return None
        return ("no answer" if asked.outcome is Outcome.SILENT else
                f"{asked.ended - limit:.3f} s later than it may be, {asked.ended - asked.deadline:.3f} s after the deadline")

    def _served_from(self, asked):
        """When the last worker that may have had the request began to have time for it."""
        begin = asked.arrived
        for kind in (Kind.KILLED, Kind.DOWN, Kind.FROZEN):
            for span in self.timeline.met(kind, asked.sent - GRACE, asked.ended):
                begin = max(begin, span.end + (GRACE if kind is Kind.KILLED else 0))
        # Who waits for a database that is away keeps the last descriptors, and the next one waits in the backlog.
        for short in self.timeline.met(Kind.SHORT, asked.sent, asked.ended):
            for trouble in self.timeline.met(Kind.TROUBLE, short.begin, short.end):
                if trouble.meets(asked.sent - GRACE, asked.ended):
                    begin = max(begin, min(short.end, trouble.end) + GRACE)
        return begin

    def _early(self, asked):
        # Nobody waits for an instance that is not there.
        at_once = asked.status == 200 or asked.code == 2000
        if at_once or asked.ended >= asked.sent + asked.wait - self.rules.rounding or self._reason_for_early(asked):
            return None
        return f"{asked.sent + asked.wait - asked.ended:.3f} s early without a reason"

    def _reason_for_early(self, asked):
        return (asked.may_be_early
                or self.timeline.met(Kind.LEAVING, asked.sent, asked.ended)
                or self.timeline.met(Kind.DOWN, asked.sent, asked.ended)
                or self.timeline.met(Kind.SHORT, asked.sent, asked.ended)
                or self._waiting(asked.sent, asked.ended) >= self.rules.max_waiting)

    def _waiting(self, begin, end):
        """How many requests may have been waiting at most at one moment of [begin, end]: rather too many."""
        return bisect.bisect_right(self.begins, end) - bisect.bisect_left(self.ends, begin)

    def _slow_payment(self, asked):
        """One who waits is answered soon after the commit, or soon after the recovery."""
        paid = next((commit for commit in self.timeline.commits[asked.key] if commit.found.status == 200), None)
        if not paid or paid.done >= asked.ended:
            return None
        begin, cost = max(paid.done, asked.arrived), self.rules.connect_cost
        kinds = self.DISTURBING + ((Kind.STARTING,) if cost else ())
        longest = max((gap.end - gap.begin for gap in self.timeline.gaps(kinds, begin, asked.ended)), default=0)
        if longest <= SOON + cost:
            return None
        return f"{longest:.3f} s of a healthy database after the payment, {asked.ended - paid.done:.3f} s in all"

    # Whether it may fail.

    def _failed(self, asked):
        if not self._troubled(asked.ended - self.rules.db_timeout - GRACE, asked.ended):
            return "500, but the database was well"
        known = self._known(asked)
        earliest = asked.sent + self.rules.db_timeout + (asked.wait if known else 0) - self.rules.rounding
        if self._stopping(asked):
            told = known and (asked.ended < earliest or self._all_told(asked, earliest))
            return "500 at a stop, but its state was known" if told else None
        if asked.ended < earliest:
            return f"500, {earliest - asked.ended:.3f} s before patience was to end"
        return None

    def _troubled(self, begin, end):
        met, cost = self.timeline.met, self.rules.connect_cost
        if met(Kind.TROUBLE, begin - cost, end) or met(Kind.FROZEN, begin, end) or met(Kind.STALL, begin, end):
            return True
        if cost and met(Kind.STARTING, begin - cost, end):
            return True
        # With no descriptor left a lost connection to the database cannot be replaced.
        return any(met(Kind.TROUBLE, span.begin - GRACE, span.end) for span in met(Kind.SHORT, begin, end))

    def _stopping(self, asked):
        return (self.timeline.met(Kind.LEAVING, asked.sent - self.rules.rounding, asked.ended)
                or self.timeline.met(Kind.DOWN, asked.sent - self.rules.rounding, asked.ended))

    def _all_told(self, asked, before):
        """Every worker was told to stop before this moment. At SIGHUP they are told one by one, the last one late."""
        return any(span.begin + TOLD < before for span in self.timeline.met(Kind.DOWN, asked.sent, asked.ended))

    def _known(self, asked, until=math.inf):
        """The worker that answers must have had an answer from the database for it, before this moment."""
        if asked.wait == 0 or self.timeline.met(Kind.SHORT, asked.sent, asked.ended):
            return False
        until = min(until, asked.ended)
        killed = self.timeline.met(Kind.KILLED, asked.sent, asked.ended)
        begin = max([asked.arrived] + [span.end + GRACE for span in killed])
        if not begin < until:
            return False
        gaps = self.timeline.gaps(self.DISTURBING, begin - GRACE, until)
        return any(gap.end - max(gap.begin, begin) >= LOOKED_UP + self.rules.connect_cost for gap in gaps)

    # Whether it may be lost.

    def _lost(self, asked):
        if (self._killed(asked) or self._shut_out(asked) or self._was_silent(asked)
                or asked.reused and any(self.timeline.met(kind, asked.opened, asked.ended)
                                        for kind in (Kind.LEAVING, Kind.SHORT))):
            return None
        return "502 without a killed worker" if asked.status == 502 else "closed without an answer"

    def _was_silent(self, asked):
        """It was closed because its driver had connected, and then did not run until it could send."""
        met, allowed = self.timeline.met, SILENCE
        if met(Kind.LEAVING, asked.opened, asked.ended) or met(Kind.DOWN, asked.opened, asked.ended):
            allowed = SILENCE_AT_STOP
        if met(Kind.SHORT, asked.opened, asked.ended):
            allowed = SILENCE_IN_SHORTAGE
        return not asked.reused and asked.sent - asked.opened >= allowed - ROUNDING

    def _killed(self, asked):
        """Its worker may have been killed: the connection is closed then, and the peer notices when it sends, or at once."""
        slack = GRACE + self.timeline.stalled(asked.sent, asked.ended)
        return any(span.begin <= asked.sent or asked.ended <= span.end + slack
                   for span in self.timeline.met(Kind.KILLED, min(asked.opened, asked.sent - slack * asked.nginx), asked.ended))

    def _shut_out(self, asked):
        """It came when the pool had been told to stop. What was sent before is answered, out of the backlog too,
        unless a worker cannot accept. nginx needs a moment to hand a request over."""
        met = self.timeline.met
        for span in met(Kind.DOWN, asked.opened - GRACE * asked.nginx, asked.ended):
            cannot_accept = any(met(kind, asked.sent - GRACE, asked.ended) for kind in (Kind.SHORT, Kind.FROZEN, Kind.KILLED))
            if cannot_accept or asked.sent >= span.begin - GRACE * asked.nginx:
                return True
        return False

    def _refused(self, asked):
        if self.timeline.met(Kind.DOWN, asked.sent, asked.ended):
            return []
        return ["connection refused"]
