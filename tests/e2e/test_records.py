# SPDX-License-Identifier: GPL-3.0-or-later
"""Each FastCGI record in each state of a connection: what FastCGI 1.0 says, and where it says nothing, that it is refused.

Sections in brackets are those of the specification. All records have the same form whatever their type, so each is sent
with no content, some, and as much as a record can have, without padding and with all the padding that there can be.
"""

import collections
import contextlib
import itertools
import struct

import pytest

import fastcgi
from checked import CheckedPool
from client import assert_error, target
from fastcgi import (ABORT_REQUEST, AUTHORIZER, BEGIN_REQUEST, CANT_MPX_CONN, DATA, END_REQUEST, FILTER, GET_VALUES,
                     GET_VALUES_RESULT, KEEP_CONN, PARAMS, REQUEST_COMPLETE, RESPONDER, STDERR, STDIN, STDOUT, UNKNOWN_ROLE,
                     UNKNOWN_TYPE)
from merchant import new_session, new_url

TYPES = {"0": 0, "BEGIN_REQUEST": BEGIN_REQUEST, "ABORT_REQUEST": ABORT_REQUEST, "END_REQUEST": END_REQUEST,
         "PARAMS": PARAMS, "STDIN": STDIN, "STDOUT": STDOUT, "STDERR": STDERR, "DATA": DATA, "GET_VALUES": GET_VALUES,
         "GET_VALUES_RESULT": GET_VALUES_RESULT, "UNKNOWN_TYPE": UNKNOWN_TYPE, "12": 12, "255": 255}

# The states of a connection, by what the peer has sent:
#   fresh     nothing
#   begun     BEGIN_REQUEST
#   params    and PARAMS, but not their end
#   stdin     and the end of PARAMS
#   whole     and the end of STDIN: the record comes together with it
#   waiting   the same, and the request is parked
#   kept      a request that has been answered, on a connection that is kept
STATES = ["fresh", "begun", "params", "stdin", "whole", "waiting", "kept"]

# The record has the id of the present request, or of the last one. What comes of it:
#   begins    a request begins [5.1]
#   goes on   the record belongs to the request, which can be completed and is answered
#   ignored   records of an id that is not active are ignored [3.3]. The request, if there is one, is answered
#   aborted   FCGI_END_REQUEST as soon as possible [5.4]. Then the connection is closed, even if the peer wants to keep it
#             [5.1 says otherwise]: a peer that aborts loses nothing by it, and no web server is known to send this record
#   closed    nothing is sent. The id is in use [3.3], the stream is at its end or not begun [3.3, 6.2], or the record
#             goes from the application to the web server only
OWN_ID = """
                     fresh     begun     params    stdin     whole     waiting   kept
0                    ignored   closed    closed    closed    closed    closed    ignored
BEGIN_REQUEST        begins    closed    closed    closed    closed    closed    begins
ABORT_REQUEST        ignored   aborted   aborted   aborted   aborted   aborted   ignored
END_REQUEST          ignored   closed    closed    closed    closed    closed    ignored
PARAMS               ignored   goes-on   goes-on   closed    closed    closed    ignored
STDIN                ignored   closed    closed    goes-on   closed    closed    ignored
STDOUT               ignored   closed    closed    closed    closed    closed    ignored
STDERR               ignored   closed    closed    closed    closed    closed    ignored
DATA                 ignored   closed    closed    closed    closed    closed    ignored
GET_VALUES           ignored   closed    closed    closed    closed    closed    ignored
GET_VALUES_RESULT    ignored   closed    closed    closed    closed    closed    ignored
UNKNOWN_TYPE         ignored   closed    closed    closed    closed    closed    ignored
12                   ignored   closed    closed    closed    closed    closed    ignored
255                  ignored   closed    closed    closed    closed    closed    ignored
"""

# The record has the id of no request: ignored, but for this one.
#   second    FCGI_END_REQUEST with FCGI_CANT_MPX_CONN [5.5]; the first request goes on and is answered
OTHER_ID = """
                     fresh     begun     params    stdin     whole     waiting   kept
BEGIN_REQUEST        begins    second    second    second    second    second    begins
"""

# The id 0: a management record [3.3, 4]. They have nothing to do with a request, and so may come at any time.
#   values    FCGI_GET_VALUES_RESULT [4.1]
#   unknown   FCGI_UNKNOWN_TYPE [4.2]
# A request that is under way goes on and is answered.
NULL_ID = {**dict.fromkeys(TYPES, "unknown"), "GET_VALUES": "values"}

OWN, OTHER = 7, 9
LENGTHS = [0, 1, 8, 65535]
PADDINGS = [0, 255]
# In seconds; less than the time after which a silent connection is closed.
PROMPT = 3
# The states in which a request waits, until its order is paid.
WAITING = ("whole", "waiting")
LONG_MS = 40_000
# Connections, so few that none is silent for too long before it is its turn.
AT_ONCE = 100


def read_table(text):
    """{(type, state): what comes of it}"""
    states, *rows = [line.split() for line in text.strip().splitlines()]
    return {(name, state): cell for name, *cells in rows for state, cell in zip(states, cells, strict=True)}


OWN_TABLE, OTHER_TABLE = read_table(OWN_ID), read_table(OTHER_ID)


@pytest.fixture(scope="module")
def pool(program, database):
    with CheckedPool(program, "--workers", "1", "--poll-interval", "100", database=database) as started:
        assert_error(started.fcgi.ask(new_session(), new_url()), 404, 2038)
        before = started.workers()
        yield started
        assert started.workers() == before


class Peer:
    """A connection that is brought into a state, and what is left to send of its request, which is about `key`."""

    def __init__(self, pool, state, key):
        self.connection = fastcgi.Connection(pool.connect_to, timeout=10)
        self.params = fastcgi.pairs(variables(key, LONG_MS if state in WAITING else 0))
        # What a PARAMS record continues: as long as the longest record.
        self.stream = fill(b"" if state == "params" else self.params)
        request = [fastcgi.begin(OWN, keep=True), fastcgi.record(PARAMS, self.params, OWN), fastcgi.record(PARAMS, id=OWN),
                   fastcgi.record(STDIN, id=OWN)]
        sent = {"fresh": 0, "begun": 1, "params": 2, "stdin": 3}.get(state, 4)
        self.held, self.rest = b"", b"".join(request[sent:])
        if state == "whole":
            self.held = b"".join(request)
        else:
            self.send(*request[:sent])
        if state == "kept":
            self.answer()
        if state in ("fresh", "kept"):
            self.rest = b"".join(request)

    def send(self, *records):
        """The pool may close before it has read all of it."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(*records)

    def send_cell(self, record):
        self.send(self.held, record)

    def read(self):
        self.connection.socket.settimeout(PROMPT)
        return self.connection.read()

    def is_closed(self):
        assert self.read() is None

    def answer(self, id=OWN):
        self.connection.socket.settimeout(LONG_MS / 1000)
        reply = self.connection.reply(id)
        assert reply, "closed without an answer"
        assert reply.protocol_status == REQUEST_COMPLETE
        return reply.status

    def is_answered(self):
        """The request can be completed, and another one can follow."""
        self.send(self.rest)
        assert self.answer() in (200, 404)
        self.send(fastcgi.request(fastcgi.variables("/nothing"), OWN, keep=True))
        assert self.answer() == 404


def variables(key, timeout_ms=None):
    return fastcgi.variables(target(*key, "shop", timeout_ms))


def new_key():
    return new_session(), new_url()


def fill(params):
    """With one more pair, so that it is 65535 bytes."""
    length = 65535 - len(params) - len(fastcgi.size(1) + fastcgi.size(60000) + b"X")
    return params + fastcgi.pairs({"X": "y" * length})


# What comes of a record

def ignored(peer, *_):
    peer.is_answered()


def closed(peer, *_):
    peer.is_closed()


def aborted(peer, *_):
    got = peer.read()
    assert got, "closed"
    assert (got.type, got.id, got.content[4]) == (END_REQUEST, OWN, REQUEST_COMPLETE)
    peer.is_closed()


def second(peer, *_):
    got = peer.read()
    assert got, "closed"
    assert (got.type, got.id, got.content[4]) == (END_REQUEST, OTHER, CANT_MPX_CONN)
    peer.is_answered()


def begins(peer, _kind, id, _content):
    peer.send(fastcgi.stream(PARAMS, fastcgi.pairs(variables(new_key())), id), fastcgi.record(STDIN, id=id))
    assert peer.answer(id) == 404
    peer.is_answered()


def values(peer, *_):
    assert peer.read() == (GET_VALUES_RESULT, 0, b"")
    peer.is_answered()


def unknown(peer, kind, *_):
    assert peer.read() == (UNKNOWN_TYPE, 0, bytes([kind]) + bytes(7))
    peer.is_answered()


def goes_on(peer, kind, _id, content):
    """The content is the next part of the stream; where there is none, it is its end."""
    if kind == PARAMS and content:
        peer.send(fastcgi.stream(PARAMS, peer.stream[len(content):], OWN))
    if kind == PARAMS or content:
        peer.send(fastcgi.record(STDIN, id=OWN))
    assert peer.answer() == 404


OUTCOMES = {"ignored": ignored, "closed": closed, "aborted": aborted, "second": second, "begins": begins, "values": values,
            "unknown": unknown, "goes-on": goes_on}


def judge(outcome, *arguments):
    """Nothing if it is so, else what was there instead."""
    try:
        OUTCOMES[outcome](*arguments)
    except (AssertionError, OSError) as error:
        return [f"not {outcome}: {error!r}"]
    return []


def outcome_of(name, id, state, length):
    """What the tables say, and the lengths that matter."""
    if id == 0:
        return NULL_ID[name]
    if name == "BEGIN_REQUEST" and length != 8:
        return "closed"  # it has 8 bytes of content [5.1]
    return OWN_TABLE[name, state] if id == OWN else OTHER_TABLE.get((name, state), "ignored")


def content_of(name, length, peer):
    if name == "BEGIN_REQUEST" and length == 8:
        return struct.pack("!HB5x", RESPONDER, KEEP_CONN)
    return (peer.stream if name == "PARAMS" else b"").ljust(length, b"x")[:length]


def play(pool, merchant, state, cells, make_record):
    """Bring a connection into the state for each cell, send its record to it, and return what went wrong.

    `make_record(peer, cell)` returns content and record. After each cell the pool answers a good request on a new connection.
    """
    return [wrong for first in range(0, len(cells), AT_ONCE)
            for wrong in play_at_once(pool, merchant, state, cells[first:first + AT_ONCE], make_record)]


def ask_twice(pool):
    """What has been sent before has been read after this, and looked up."""
    for _ in range(2):
        assert_error(pool.fcgi.ask(*new_key()), 404, 2038)


def play_at_once(pool, merchant, state, cells, make_record):
    wrong, key = [], new_key()
    order = merchant.contract(*key) if state in WAITING else None
    with contextlib.ExitStack() as stack:
        peers = [Peer(pool, state, key) for _ in cells]
        for peer in peers:
            stack.enter_context(peer.connection)
        if state == "waiting":
            ask_twice(pool)
        sent = [make_record(peer, cell) for peer, cell in zip(peers, cells)]
        for peer, (_, record) in zip(peers, sent):
            peer.send_cell(record)
        if order:
            ask_twice(pool)
            merchant.pay(order)
        for peer, cell, (content, record) in zip(peers, cells, sent):
            wrong += [f"{state} {cell}: {what}" for what in judge(cell.outcome, peer, record[1], cell.id, content)]
            assert_error(pool.fcgi.ask(*new_key()), 404, 2038)
    return wrong


Cell = collections.namedtuple("Cell", "name id length padding outcome")


@pytest.mark.parametrize("state", STATES)
def test_records(pool, merchant, state):
    def make_record(peer, cell):
        content = content_of(cell.name, cell.length, peer)
        return content, fastcgi.record(TYPES[cell.name], content, cell.id, padding=cell.padding)

    cells = [Cell(name, id, length, padding, outcome_of(name, id, state, length))
             for name, id, length, padding in itertools.product(TYPES, [0, OWN, OTHER], LENGTHS, PADDINGS)]
    assert play(pool, merchant, state, cells, make_record) == []


@pytest.mark.parametrize("state", STATES)
def test_versions(pool, merchant, state):
    """Nothing is known of another version of the protocol: closed."""
    def make_record(_peer, cell):
        content = struct.pack("!HB5x", RESPONDER, KEEP_CONN)[:cell.length]
        return content, fastcgi.record(TYPES[cell.name], content, cell.id, version=cell.padding)

    cells = [Cell(name, id, length, version, "closed")
             for name, id, length, version in itertools.product(TYPES, [0, OWN, OTHER], [0, 8], [0, 2, 255])]
    assert play(pool, merchant, state, cells, make_record) == []


@pytest.mark.parametrize("role", [0, RESPONDER, AUTHORIZER, FILTER, 4, 256, 65535])
@pytest.mark.parametrize("flags", [0, KEEP_CONN, 2, 255])
@pytest.mark.parametrize("state", ["fresh", "kept"])
def test_roles_and_flags(pool, state, role, flags):
    """Bits of the flags that have no meaning are ignored. A role that is not ours is refused [5.5], and the connection
    closed, even if the peer wants to keep it: whoever has set this up has to look at it anyway."""
    peer = Peer(pool, state, new_key())
    with peer.connection:
        peer.send(fastcgi.record(BEGIN_REQUEST, struct.pack("!HB5s", role, flags, b"\xff" * 5), OTHER),
                  fastcgi.stream(PARAMS, fastcgi.pairs(variables(new_key())), OTHER), fastcgi.record(STDIN, id=OTHER))
        if role != RESPONDER:
            got = peer.read()
            assert (got.type, got.id, got.content[4]) == (END_REQUEST, OTHER, UNKNOWN_ROLE)
            peer.is_closed()
        else:
            assert peer.answer(OTHER) == 404
            if flags & KEEP_CONN:
                peer.is_answered()
            else:
                peer.is_closed()
    assert_error(pool.fcgi.ask(new_session(), new_url()), 404, 2038)
