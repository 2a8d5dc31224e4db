# SPDX-License-Identifier: GPL-3.0-or-later
"""FastCGI on the raw socket: what a web server may send, and what only somebody hostile would."""

import collections
import concurrent.futures
import contextlib
import pathlib
import os
import random
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest

import fastcgi
from checked import CheckedPool
from client import assert_error, target
from fastcgi import (ABORT_REQUEST, AUTHORIZER, BEGIN_REQUEST, CANT_MPX_CONN, DATA, END_REQUEST, FILTER, GET_VALUES,
                     GET_VALUES_RESULT, PARAMS, REQUEST_COMPLETE, STDIN, STDOUT, UNKNOWN_ROLE, UNKNOWN_TYPE)
from merchant import new_session, new_url
from processes import free_port, sockets, status_bytes, wait_until
from servers import ROOT

# In which a request has to arrive.
REQUEST_TIME = 5
DB_TIMEOUT = 2
SLACK = 1.0
# Seconds between connections that come one after the other.
ARRIVAL = 0.005


@pytest.fixture(scope="module")
def pool(program, database):
    with CheckedPool(program, "--workers", "1", "--poll-interval", "100", database=database) as started:
        assert_error(started.fcgi.ask(new_session(), new_url()), 404, 2038)
        yield started


@pytest.fixture
def worker(pool):
    """A pool of one worker, which must be the same after the test, and serve."""
    before = pool.workers()
    yield pool
    assert_error(pool.fcgi.ask(new_session(), new_url()), 404, 2038)
    assert pool.workers() == before
    pool.check_log()


@pytest.fixture
def connection(worker):
    with fastcgi.Connection(worker.connect_to) as opened:
        yield opened


def variables(**more):
    return fastcgi.variables(target(new_session(), new_url(), "shop"), **more)


def unknown(reply):
    assert (reply.status, reply.protocol_status, reply.app_status) == (404, REQUEST_COMPLETE, 0)
    return True


# What a web server may send

def test_closing_without_keep(connection):
    connection.send(fastcgi.request(variables()))
    assert unknown(connection.reply())
    assert connection.seconds_until_closed() < 1


def test_keeping(connection):
    for id in (1, 1, 2, 65535, 1):
        connection.send(fastcgi.request(variables(), id=id, keep=True))
        assert unknown(connection.reply(id))


def test_keeping_until_told_otherwise(connection):
    connection.send(fastcgi.request(variables(), keep=True))
    assert unknown(connection.reply())
    connection.send(fastcgi.request(variables(), keep=False))
    assert unknown(connection.reply())
    assert connection.seconds_until_closed() < 1


def test_hundred_requests_on_a_connection(connection):
    for _ in range(100):
        connection.send(fastcgi.request(variables(), keep=True))
        assert unknown(connection.reply())


def test_byte_by_byte(connection):
    for byte in fastcgi.request(variables(), keep=True):
        connection.send(bytes([byte]))
    assert unknown(connection.reply())


def test_record_by_record(connection):
    content = fastcgi.pairs(variables())
    for piece in (fastcgi.begin(), fastcgi.record(PARAMS, content), fastcgi.record(PARAMS), fastcgi.record(STDIN)):
        connection.send(piece)
        time.sleep(0.05)  # so that each is read alone
    assert unknown(connection.reply())


def test_parameters_in_tiny_records(connection):
    content = fastcgi.pairs(variables())
    connection.send(fastcgi.begin(), *[fastcgi.record(PARAMS, content[at:at + 1]) for at in range(len(content))],
                    fastcgi.record(PARAMS), fastcgi.record(STDIN))
    assert unknown(connection.reply())


@pytest.mark.parametrize("padding", [1, 7, 255])
def test_padding(connection, padding):
    connection.send(fastcgi.record(BEGIN_REQUEST, struct.pack("!HB5x", 1, 0), padding=padding),
                    fastcgi.record(PARAMS, fastcgi.pairs(variables()), padding=padding),
                    fastcgi.record(PARAMS, padding=padding), fastcgi.record(STDIN, b"body", padding=padding),
                    fastcgi.record(STDIN, padding=padding))
    assert unknown(connection.reply())


def test_long_form_of_short_lengths(connection):
    content = b""
    for name, value in variables().items():
        name, value = name.encode(), value.encode()
        content += struct.pack("!II", len(name) | 0x80000000, len(value) | 0x80000000) + name + value
    connection.send(fastcgi.begin(), fastcgi.stream(PARAMS, content), fastcgi.record(STDIN))
    assert unknown(connection.reply())


OTHERS = {"many": fastcgi.pairs({"HTTP_X": "v" * 40}) * 45_000, "long": fastcgi.pairs({"HTTP_COOKIE": "v" * 2**21})}


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("first", [False, True])
def test_parameters_that_are_not_wanted(connection, first, others):
    """There may be two mebibytes of them. They are passed over."""
    wanted = fastcgi.pairs(variables())
    content = OTHERS[others] + wanted if first else wanted + OTHERS[others]
    assert len(content) > 2 * 2**20
    connection.send(fastcgi.begin(keep=True), fastcgi.stream(PARAMS, content), fastcgi.record(STDIN))
    assert unknown(connection.reply())
    connection.send(fastcgi.request(variables()))
    assert unknown(connection.reply())


def test_as_much_as_is_wanted(connection):
    """REQUEST_URI and QUERY_STRING have the query both."""
    query = {"QUERY_STRING": "x" * 32_000, "REQUEST_URI": "/sessions/a?" + "x" * 32_000}
    connection.send(fastcgi.request({**variables(), **query}))
    assert connection.reply().status == 400


def test_body_of_many_records(connection):
    connection.send(fastcgi.request(variables(), body=b"x" * 2**20, keep=True))
    assert unknown(connection.reply())
    connection.send(fastcgi.request(variables(), keep=True))
    assert unknown(connection.reply())


def test_body_that_comes_late(connection):
    connection.send(fastcgi.begin(keep=True), fastcgi.stream(PARAMS, fastcgi.pairs(variables(method="POST"))))
    for _ in range(3):
        time.sleep(0.1)  # late
        connection.send(fastcgi.record(STDIN, b"x" * 1000))
    connection.send(fastcgi.record(STDIN))
    reply = connection.reply()
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    connection.send(fastcgi.request(variables()))
    assert unknown(connection.reply())


def variables_are_asked(names):
    return fastcgi.record(GET_VALUES, fastcgi.pairs([(name, "") for name in names]), id=0)


KNOWN = ["FCGI_MAX_CONNS", "FCGI_MAX_REQS", "FCGI_MPXS_CONNS"]


@pytest.mark.parametrize("names", [["FCGI_MPXS_CONNS"], KNOWN, [*KNOWN, "FCGI_UNKNOWN", "", "s3cr3t"], ["FCGI_UNKNOWN"], [],
                                   KNOWN * 4, ["FCGI_MPXS_CONNS"] * 200, ["x" * 300], ["FCGI_MPXS_CONNS_"]], ids=str)
def test_get_values(connection, names):
    connection.send(variables_are_asked(names))
    got = connection.read()
    assert (got.type, got.id) == (GET_VALUES_RESULT, 0)
    values = fastcgi.read_pairs(got.content)
    assert set(values) <= set(KNOWN) & set(names)
    assert values.get("FCGI_MPXS_CONNS") == ("0" if "FCGI_MPXS_CONNS" in names else None)
    connection.send(fastcgi.request(variables()))
    assert unknown(connection.reply())


@pytest.mark.parametrize("kind", [0, 12, 100, 255])
def test_unknown_management_record(connection, kind):
    connection.send(fastcgi.record(kind, b"x" * 20, id=0, padding=4))
    assert connection.read() == (UNKNOWN_TYPE, 0, bytes([kind]) + bytes(7))
    connection.send(fastcgi.request(variables()))
    assert unknown(connection.reply())


def test_management_records_by_the_hundred(connection):
    for _ in range(100):
        connection.send(fastcgi.record(99, b"x" * 1000, id=0), variables_are_asked(KNOWN))
        assert connection.read().type == UNKNOWN_TYPE
        assert connection.read().type == GET_VALUES_RESULT


def parked(keep=True, id=1, timeout_ms=20000):
    uri = target(new_session(), new_url(), "shop", timeout_ms)
    return fastcgi.request(fastcgi.variables(uri), id=id, keep=keep)


def test_a_second_request_while_one_waits(worker, connection):
    connection.send(parked(id=1, timeout_ms=700))
    worker.wait_for_waiting(1)
    connection.send(fastcgi.request(variables(), id=2, keep=True))
    refused = connection.read()
    assert (refused.type, refused.id) == (END_REQUEST, 2)
    assert refused.content[4] == CANT_MPX_CONN
    assert unknown(connection.reply(id=1))
    connection.send(fastcgi.request(variables(), id=3, keep=True))
    assert unknown(connection.reply(id=3))


def test_a_second_request_within_the_first(connection):
    whole, cut = fastcgi.request(variables(), keep=True), len(fastcgi.begin())
    connection.send(whole[:cut], fastcgi.begin(id=2), whole[cut:])
    refused = connection.read()
    assert (refused.type, refused.id, refused.content[4]) == (END_REQUEST, 2, CANT_MPX_CONN)
    assert unknown(connection.reply(id=1))


def ended_or_closed(connection):
    got = connection.read()
    while got is not None and got.type == STDOUT:
        got = connection.read()
    return got is None or got.type == END_REQUEST


def test_abort_of_a_request_that_waits(worker, connection):
    connection.send(parked())
    worker.wait_for_waiting(1)
    begun = time.monotonic()
    connection.send(fastcgi.abort())
    assert ended_or_closed(connection)
    assert time.monotonic() - begun < 1


def test_abort_of_half_a_request(connection):
    connection.send(fastcgi.begin(keep=True), fastcgi.record(PARAMS, fastcgi.pairs(variables())), fastcgi.abort())
    assert ended_or_closed(connection)


def test_abort_of_nothing(connection):
    connection.send(fastcgi.abort(), fastcgi.abort(id=7))


@pytest.mark.parametrize("role", [AUTHORIZER, FILTER, 0, 4, 65535])
def test_other_roles(connection, role):
    connection.send(fastcgi.request(variables(), role=role))
    got = connection.read()
    assert (got.type, got.id, got.content[4]) == (END_REQUEST, 1, UNKNOWN_ROLE)
    assert connection.seconds_until_closed() < 1


# What only somebody hostile would send

def request_with(content):
    return fastcgi.begin(), fastcgi.stream(PARAMS, content), fastcgi.record(STDIN)


ROOM = b"x" * 200
CLOSED = {
    "HTTP": [b"GET /sessions/s3cr3t HTTP/1.1\r\nHost: shop.example\r\n\r\n"],
    "version 0": [fastcgi.record(BEGIN_REQUEST, struct.pack("!HB5x", 1, 0), version=0)],
    "version 2": [fastcgi.record(BEGIN_REQUEST, struct.pack("!HB5x", 1, 0), version=2)],
    "version in mid-request": [fastcgi.begin(), fastcgi.record(PARAMS, b"", version=3)],
    "short begin": [fastcgi.record(BEGIN_REQUEST, struct.pack("!HB4x", 1, 0))],
    "long begin": [fastcgi.record(BEGIN_REQUEST, struct.pack("!HB6x", 1, 0))],
    "empty begin": [fastcgi.record(BEGIN_REQUEST)],
    "huge begin": [fastcgi.record(BEGIN_REQUEST, bytes(65535))],
    "lengths near 2^31": request_with(struct.pack("!II", 0xfffffffe, 0xfffffffe) + ROOM),
    "name near 2^31": request_with(struct.pack("!IB", 0xffffffff, 1) + ROOM),
    "value near 2^31": request_with(struct.pack("!BI", 1, 0xffffffff) + ROOM),
    "lengths that add up to 2^32": request_with(struct.pack("!II", 0xffffffff, 0xffffffff) + ROOM),
    "cut in the lengths": request_with(fastcgi.pairs({"A": "B"}) + b"\x80\0"),
    "cut before the value's length": request_with(fastcgi.pairs({"A": "B"}) + b"\x05"),
    "cut in the name": request_with(fastcgi.pairs({"A": "B"}) + b"\x05\x05ab"),
    "cut in the value": request_with(fastcgi.pairs({"A": "B"}) + b"\x01\x05ab"),
    "cut after the lengths": request_with(fastcgi.pairs({"A": "B"}) + b"\x01\x05"),
    "NUL in the value": request_with(fastcgi.pairs({"A": "x" * 100_000 + "\0" + "x" * 1000})),
    "query of 66 KiB": request_with(fastcgi.pairs({"QUERY_STRING": "x" * 66 * 1024})),
    "path and query of 70 KiB": request_with(fastcgi.pairs({"REQUEST_URI": "x" * 35_000, "QUERY_STRING": "x" * 35_000})),
}


@pytest.mark.parametrize("name", CLOSED)
def test_is_closed(connection, name):
    try:
        connection.send(*CLOSED[name])
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert connection.seconds_until_closed() < 2


@pytest.mark.parametrize("name", CLOSED)
def test_is_closed_on_a_kept_connection(connection, name):
    connection.send(fastcgi.request(variables(), keep=True))
    assert unknown(connection.reply())
    try:
        connection.send(*CLOSED[name])
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert connection.seconds_until_closed() < 2


SURVIVED = {
    "nothing": [b""],
    "a byte": [b"\1"],
    "zeros": [bytes(1000)],
    "ones": [b"\1" * 1000],
    "noise": [random.Random(2).randbytes(5000)],
    "parameters before begin": [fastcgi.record(PARAMS, fastcgi.pairs({"A": "B"}))],
    "body before begin": [fastcgi.record(STDIN, b"x" * 100)],
    "body before parameters": [fastcgi.begin(), fastcgi.stream(STDIN, b"body"), fastcgi.stream(PARAMS, b"")],
    "another id": [fastcgi.begin(id=1), fastcgi.record(PARAMS, fastcgi.pairs({"A": "B"}), id=2), fastcgi.record(STDIN, id=3)],
    "id 0": [fastcgi.request({"A": "B"}, id=0)],
    "begin a thousand times": [fastcgi.begin(id=number) for number in range(1, 1000)],
    "the same id twice": [fastcgi.begin(), fastcgi.begin(), fastcgi.begin()],
    "no parameters": request_with(b""),
    "data": [fastcgi.begin(), fastcgi.record(DATA, b"x" * 100)],
    "output": [fastcgi.begin(), fastcgi.record(STDOUT, b"x"), fastcgi.record(END_REQUEST, bytes(8))],
    "unknown type": [fastcgi.begin(), fastcgi.record(77, b"x" * 100)],
    "abort with content": [fastcgi.begin(), fastcgi.record(ABORT_REQUEST, b"x" * 100)],
    "management in mid-request": [fastcgi.begin(), fastcgi.record(77, b"x" * 100, id=0),
                                  fastcgi.record(GET_VALUES, fastcgi.pairs({name: "" for name in KNOWN}), id=0)],
    "values cut": [fastcgi.record(GET_VALUES, b"\x0fFCGI", id=0)],
    "values near 2^31": [fastcgi.record(GET_VALUES, struct.pack("!II", 0xfffffffe, 0xfffffffe) + ROOM, id=0)],
    "values of 64 KiB": [fastcgi.record(GET_VALUES, bytes(65535), id=0)],
    "parameters after their end": [*request_with(fastcgi.pairs({"A": "B"})), fastcgi.record(PARAMS, fastcgi.pairs({"C": "D"}))],
    "body after its end": [fastcgi.request({"A": "B"}, keep=True), fastcgi.record(STDIN, b"more")],
    "NUL in names": request_with(fastcgi.pairs({"REQUEST_URI\0": "/\0", "\0": "\0"})),
    "= in names": request_with(fastcgi.pairs({"A=B": "C", "=": "", "REQUEST_METHOD=GET": "x"})),
    "ten thousand empty pairs": request_with(bytes(20000)),
    "the same name again and again": request_with(fastcgi.pairs([("REQUEST_URI", "/sessions/s3cr3t")] * 1000)),
}


@pytest.mark.parametrize("name", SURVIVED)
def test_is_survived(connection, name):
    try:
        connection.send(*SURVIVED[name])
        connection.socket.shutdown(1)
        while connection.socket.recv(65536):
            pass
    except (BrokenPipeError, ConnectionResetError):
        pass


def test_mutations(worker):
    """A good request in which bytes are changed, doubled or lost."""
    chance = random.Random(20)
    good = fastcgi.request(variables(), body=b"body")
    for _ in range(600):
        bad = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(bad))
            bad[at:at + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 2))
        with fastcgi.Connection(worker.connect_to) as connection:
            try:
                connection.send(bytes(bad))
                connection.socket.shutdown(1)
                while connection.socket.recv(65536):
                    pass
            except (BrokenPipeError, ConnectionResetError):
                pass


def test_leaving_in_mid_request(worker):
    whole = fastcgi.request(variables(), body=b"body")
    for length in range(0, len(whole), 5):
        with fastcgi.Connection(worker.connect_to) as connection:
            connection.send(whole[:length])


# The time in which a request has to arrive

def test_silence(worker):
    """A silent peer loses its connection in the middle of a request, but not between requests."""
    whole = fastcgi.request(variables(), body=b"body", keep=True)
    silent = [fastcgi.Connection(worker.connect_to) for _ in range(4)]
    for connection, length in zip(silent, (3, len(fastcgi.begin()), len(whole) // 2, len(whole) - 1)):
        connection.send(whole[:length])
    # Right after an answer, and after what is no request.
    silent += [fastcgi.Connection(worker.connect_to) for _ in range(2)]
    silent[-2].send(parked(timeout_ms=100), fastcgi.begin(id=2)[:3])
    assert unknown(silent[-2].reply())
    silent[-1].send(fastcgi.record(GET_VALUES, id=0))
    assert silent[-1].read().type == GET_VALUES_RESULT
    with fastcgi.Connection(worker.connect_to) as kept:
        kept.send(fastcgi.request(variables(), keep=True))
        assert unknown(kept.reply())
        begun = time.monotonic()
        for connection in silent:
            assert connection.read() is None
            assert REQUEST_TIME - 0.5 < time.monotonic() - begun < REQUEST_TIME + 2
            connection.close()
        time.sleep(REQUEST_TIME + 2.5 - (time.monotonic() - begun))
        kept.send(fastcgi.request(variables(), keep=True))
        assert unknown(kept.reply())


# A body that never ends
ENDLESS = fastcgi.begin() + fastcgi.stream(PARAMS, fastcgi.pairs(variables())) + fastcgi.record(STDIN, b"x" * 65535) * 1000


def drip(connections, pause, until, size=1):
    """Sends some bytes of ENDLESS on each connection, again and again. Returns when each was closed, in seconds, if it was
    within half a minute."""
    begun, at, closed = time.monotonic(), 0, {}
    while not until.is_set() and len(closed) < len(connections) and time.monotonic() - begun < 30:
        for connection in set(connections) - set(closed):
            try:
                connection.socket.send(ENDLESS[at:at + size])
            except OSError:
                closed[connection] = time.monotonic() - begun
        at += size
        until.wait(pause)
    return list(closed.values())


@pytest.mark.parametrize("size,pause,times", [(1, 0.5, 1), (50_000, 0.01, 2)], ids=["a byte at a time", "a flood"])
def test_a_request_that_never_ends(worker, size, pause, times):
    """What is there to be read when the time is over may have come in time: then it begins again, once."""
    with fastcgi.Connection(worker.connect_to) as connection:
        closed, = drip([connection], pause, threading.Event(), size)
        assert REQUEST_TIME - 0.5 < closed < times * REQUEST_TIME + 2


def test_peers_of_a_worker_that_did_not_run_were_not_silent(worker):
    """Of a machine that is suspended, for instance. More peers than a worker hears of at a time."""
    pid, = worker.workers()
    whole = fastcgi.request(variables())
    with contextlib.ExitStack() as stack:
        before = sockets(pid)
        peers = [stack.enter_context(fastcgi.Connection(worker.connect_to)) for _ in range(400)]
        for peer in peers:
            peer.send(whole[:3])
        wait_until(lambda: len(set(sockets(pid)) - set(before)) >= len(peers), 4, "connections that are accepted")
        os.kill(pid, signal.SIGSTOP)
        stack.callback(os.kill, pid, signal.SIGCONT)
        for peer in peers:
            peer.send(whole[3:])
        time.sleep(REQUEST_TIME + 0.5)
        os.kill(pid, signal.SIGCONT)
        assert all(unknown(peer.reply()) for peer in peers)


def test_an_answer_that_came_while_the_worker_did_not_run_counts(worker, postgres):
    """Its time was over when the worker went on, but it was there."""
    pid, = worker.workers()
    with postgres.session("shop") as session, fastcgi.Connection(worker.connect_to) as connection:
        session.run("BEGIN; LOCK TABLE merchant.merchant_contract_terms")
        connection.send(fastcgi.request(variables()))
        wait_until(lambda: postgres.psql("SELECT count(*) FROM pg_locks WHERE NOT granted", "shop") == "1", 1, "a lookup")
        os.kill(pid, signal.SIGSTOP)
        session.run("ROLLBACK")
        time.sleep(DB_TIMEOUT + 0.5)
        os.kill(pid, signal.SIGCONT)
        assert unknown(connection.reply())


# An answer while the peer is within its next record

@pytest.mark.parametrize("kind", [BEGIN_REQUEST, ABORT_REQUEST, PARAMS, STDIN])
def test_answer_within_a_record(worker, kind):
    """A record of the next request is cut at each byte, the answer to the first one comes in between, then the rest."""
    content = struct.pack("!HB5x", 1, 0)
    record, request = fastcgi.record(kind, content, id=2, padding=3), fastcgi.request(variables(), id=2)
    rest = request[len(fastcgi.begin()):] if kind == BEGIN_REQUEST else request
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(fastcgi.Connection(worker.connect_to)) for _ in range(len(record))]
        for cut, connection in enumerate(connections):
            connection.send(parked(timeout_ms=400), record[:cut])
        for cut, connection in enumerate(connections):
            assert unknown(connection.reply())
            connection.send(record[cut:], rest)
            assert unknown(connection.reply(id=2))
            assert connection.seconds_until_closed() < SLACK, "the second request was read with the first one's flags"


# A peer that leaves, and one that only has nothing more to send

def leaves_by_close(connection):
    connection.close()


def leaves_by_shutdown(connection):
    connection.socket.shutdown(socket.SHUT_RDWR)


def leaves_by_reset(connection):
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


def leaves_after_half_closing(connection):
    connection.socket.shutdown(socket.SHUT_WR)
    time.sleep(0.1)  # noticed by then
    connection.close()


def waits(pool, timeout_ms=300):
    """Whether a request may wait: false where --max-waiting do already."""
    return pool.fcgi.ask(new_session(), new_url(), timeout_ms=timeout_ms).seconds >= timeout_ms / 1000


@pytest.mark.parametrize("address", [None, "127.0.0.1"])
@pytest.mark.parametrize("leave", [leaves_by_close, leaves_by_shutdown, leaves_by_reset, leaves_after_half_closing])
def test_leaving_frees_the_place(start_pool, address, leave):
    address = address and f"{address}:{free_port()}"
    pool = start_pool("--max-waiting", "1", "--poll-interval", "100", address=address)
    with fastcgi.Connection(pool.connect_to) as connection:
        connection.send(parked())
        wait_until(lambda: not waits(pool), what="the place is taken")
        leave(connection)
        wait_until(lambda: waits(pool), what="the place is free")


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("timeout_ms", [0, 500])
def test_half_closing_is_not_leaving(connection, keep, timeout_ms):
    connection.send(parked(keep=keep, timeout_ms=timeout_ms))
    connection.socket.shutdown(socket.SHUT_WR)
    assert unknown(connection.reply())
    assert connection.seconds_until_closed() < 1


def test_half_closing_late_is_not_leaving(worker, connection):
    connection.send(parked(timeout_ms=700))
    worker.wait_for_waiting(1)
    connection.socket.shutdown(socket.SHUT_WR)
    assert unknown(connection.reply())
    assert connection.seconds_until_closed() < 1


def test_half_a_request_and_half_closing(connection):
    connection.send(fastcgi.begin())
    connection.socket.shutdown(socket.SHUT_WR)
    assert connection.seconds_until_closed() < 1


def test_the_log_has_the_reason(start_pool):
    pool = start_pool("--verbose")
    for sent, reason in ((fastcgi.record(77), "not a FastCGI request within the bounds"),
                         (fastcgi.abort(), "aborted by the peer"), (None, "closed by the peer")):
        with fastcgi.Connection(pool.connect_to) as connection:
            connection.send(parked())
            pool.wait_for_waiting(1)
            if sent:
                connection.send(sent)
        wait_until(lambda: pool.logged(f"debug: connection [0-9]+: {reason}, while a request was open"), what=reason)


def test_keepalive_probes_on_tcp(start_pool):
    port = free_port()
    pool = start_pool(address=f"127.0.0.1:{port}")
    with fastcgi.Connection(pool.connect_to) as connection:
        connection.send(parked())
        pool.wait_for_waiting(1)
        theirs = f"{port:04X}"
        established = [line.split() for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()
                       if line.split()[1].endswith(":" + theirs) and line.split()[3] == "01"]
        assert [fields[5].split(":")[0] for fields in established] == ["02"], "no keepalive timer"


# When descriptors run short

SHORT = 60
CONNECTIONS = SHORT - 24


@pytest.fixture
def short(start_pool):
    """A pool of one worker whose limit on descriptors has been lowered while it runs."""
    pool = start_pool("--poll-interval", "100")
    is_served(pool, count=1)
    lower_limit(pool, pool.workers()[0], SHORT)
    return pool


def lower_limit(pool, worker, descriptors):
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (descriptors, descriptors))
    time.sleep(1.2)  # a worker learns its limit once a second
    for _ in range(8):
        pool.fcgi.ask(new_session(), new_url())


def kept_idle(pool):
    connection = fastcgi.Connection(pool.connect_to)
    connection.send(fastcgi.request(variables(), keep=True))
    assert unknown(connection.reply())
    return connection


def is_served(pool, count=5):
    for _ in range(count):
        answer = pool.fcgi.ask(new_session(), new_url())
        assert_error(answer, 404, 2038)
        assert answer.seconds < SLACK


def test_idle_connections_give_way_oldest_first(short):
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(kept_idle(short)) for _ in range(2 * CONNECTIONS)]
        is_served(short)
        assert kept[0].read() is None
        assert kept[CONNECTIONS - 1].read() is None
        kept[-1].send(fastcgi.request(variables(), keep=True))
        assert unknown(kept[-1].reply())


def test_idle_connections_give_way_where_the_limit_is_not_ours(start_pool):
    """accept() fails for lack of a descriptor earlier than the worker expects."""
    pool = start_pool()
    is_served(pool, count=1)
    worker = pool.workers()[0]
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(kept_idle(pool)) for _ in range(20)]
        highest = max(int(entry.name) for entry in pathlib.Path(f"/proc/{worker}/fd").iterdir())
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (highest + 1, highest + 1))
        is_served(pool)
        assert kept[0].read() is None


def test_parked_requests_leave_room(short):
    with contextlib.ExitStack() as stack:
        crowd = []
        for _ in range(2 * CONNECTIONS):
            crowd.append(stack.enter_context(fastcgi.Connection(short.connect_to)))
            crowd[-1].send(parked(keep=False, timeout_ms=8000))
            is_served(short, count=1)
        ready, _, _ = select.select([connection.socket for connection in crowd], [], [], 0)
        assert CONNECTIONS / 2 < len(crowd) - len(ready) < CONNECTIONS - 5
        is_served(short)


@pytest.mark.parametrize("sent", [fastcgi.record(GET_VALUES, b"", id=0), b"", fastcgi.begin()[:3]], ids=["values", "nothing", "header"])
def test_silent_connections_give_way(short, sent):
    """Others wait for a connection for a second or two at most."""
    short.expect("no descriptors for more connections")
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(fastcgi.Connection(short.connect_to)).send(sent)
        answer = short.fcgi.ask(new_session(), new_url())
        assert_error(answer, 404, 2038)
        assert answer.seconds < 2 + SLACK


def test_dripping_connections_give_way(short):
    short.expect("no descriptors for more connections")
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(fastcgi.Connection(short.connect_to)) for _ in range(CONNECTIONS)]
        end = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            dripping = executor.submit(drip, connections, 0.05, end)
            stack.callback(end.set)
            for _ in range(3):
                answer = short.fcgi.ask(new_session(), new_url())
                assert_error(answer, 404, 2038)
                assert answer.seconds < 2 + SLACK
            end.set()
            dripping.result()


def watches_listener(pool, worker):
    """Whether epoll has the listening socket, the only one that the pool's first process has."""
    listener = sockets(worker)[next(iter(sockets(pool.pid)))]
    for entry in pathlib.Path(f"/proc/{worker}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if re.search(rf"^tfd:\s+{listener} ", entry.read_text(), re.M):
                return True
    return False


def test_a_full_worker_leaves_new_connections_to_another(start_pool):
    """A full worker would be woken instead of the other one, and could not accept."""
    pool = start_pool("--poll-interval", "100", workers=2)
    pool.expect("no descriptors for more connections")
    with contextlib.ExitStack() as stack:
        for _ in range(80):
            stack.enter_context(fastcgi.Connection(pool.connect_to)).send(parked())
            time.sleep(ARRIVAL)
        full, other = pool.workers()
        assert watches_listener(pool, full) and watches_listener(pool, other)
        lower_limit(pool, full, 40)
        wait_until(lambda: pool.logged("no descriptors for more connections"), what="one worker is full")
        assert not watches_listener(pool, full) and watches_listener(pool, other)
        is_served(pool, count=30)
    wait_until(lambda: watches_listener(pool, full), what="watched again")


# Memory

@pytest.fixture(scope="session")
def plain_program(program, tmp_path_factory):
    """The program without AddressSanitizer, whose allocator has no limits: built here if need be."""
    if b"__asan_init" not in pathlib.Path(program).read_bytes():
        return program
    build = tmp_path_factory.mktemp("plain") / "build"
    for command in (["setup", "-Db_sanitize=none", build, ROOT], ["compile", "-C", build, "merchant-sessions.fcgi"]):
        subprocess.run(["meson", *command], check=True, stdout=subprocess.DEVNULL)
    return build / "fcgi" / "merchant-sessions.fcgi"


def large(**more):
    """Valid parameters of 60 KB: REQUEST_URI and QUERY_STRING."""
    uri = target(new_session(), new_url(), "shop", more.pop("timeout_ms", 0)) + "&x=" + "y" * 30000
    return fastcgi.variables(uri, **more)


def test_large_requests_do_not_keep_memory_while_the_database_stalls(plain_program, postgres, database):
    with CheckedPool(plain_program, "--workers", "1", "--db-timeout", "20000", database=database) as pool, \
            contextlib.ExitStack() as stack:
        is_served(pool)
        worker = pool.workers()[0]
        before = status_bytes(worker, "VmRSS")
        stack.callback(postgres.resume)
        postgres.pause()
        crowd = [stack.enter_context(fastcgi.Connection(pool.connect_to)) for _ in range(600)]
        for connection in crowd:
            connection.send(fastcgi.request(large()))
        time.sleep(0.5)  # all are read by then
        assert status_bytes(worker, "VmRSS") - before < 600 * 60000 / 4
        postgres.resume()
        for connection in crowd:
            assert unknown(connection.reply())


def test_out_of_memory(plain_program, database):
    """Without memory, requests are refused or closed. Waiting requests stay and are answered, and the worker lives."""
    with CheckedPool(plain_program, "--workers", "1", "--poll-interval", "100", database=database) as pool, \
            contextlib.ExitStack() as stack:
        pool.expect("out of memory", "database")
        is_served(pool)
        worker = pool.workers()[0]
        waiting = [stack.enter_context(fastcgi.Connection(pool.connect_to)) for _ in range(50)]
        for connection in waiting:
            connection.send(parked(timeout_ms=3000))
        pool.wait_for_waiting(50)
        limit = status_bytes(worker, "VmSize")
        resource.prlimit(worker, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        hoard = []
        for size in [60000] * 40 + [8000] * 40 + [2000] * 40:
            hoard.append(stack.enter_context(fastcgi.Connection(pool.connect_to)))
            # Where there is no memory even for the connection, it is closed at once.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                hoard[-1].send(fastcgi.begin() + fastcgi.record(PARAMS, fastcgi.pairs(large())[:size]))
        refused = []
        for values in [large(), variables()] * 20:
            with fastcgi.Connection(pool.connect_to) as other:
                try:
                    other.send(fastcgi.request(values))
                    refused.append(other.reply())
                except (BrokenPipeError, ConnectionResetError):
                    refused.append(None)
        statuses = [reply and reply.status for reply in refused]
        assert None in statuses or 500 in statuses, "there is memory"
        assert set(statuses) <= {None, 404, 500}
        replies = [connection.reply() for connection in waiting]
        assert all(reply is not None and reply.status in (404, 500) for reply in replies)
        assert pool.workers() == [worker]
        resource.prlimit(worker, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for connection in hoard:
            connection.close()
        wait_until(lambda: pool.fcgi.ask(new_session(), new_url()).status == 404, what="served again")
        assert pool.workers() == [worker]


# Sharing the load

def connections_of(worker):
    return len(sockets(worker))


def gained(pool, before):
    return [connections_of(worker) - count for worker, count in before.items()]


def assert_shared(shares, total):
    assert sum(shares) == total
    assert max(shares) <= 1.2 * min(shares), shares


@pytest.fixture
def four(start_pool):
    """Four workers that have connected to the database."""
    pool = start_pool("--max-waiting", "100", "--poll-interval", "100", workers=4)
    wait_until(lambda: len(pool.logged("database: connected")) == 4, what="four workers")
    return pool


def test_waiting_requests_are_shared(four):
    before = {worker: connections_of(worker) for worker in four.workers()}
    with contextlib.ExitStack() as stack:
        for _ in range(240):
            stack.enter_context(fastcgi.Connection(four.connect_to)).send(parked(keep=False))
            time.sleep(ARRIVAL)
        wait_until(lambda: sum(gained(four, before)) == 240, what="all accepted")
        assert_shared(gained(four, before), 240)


def test_a_burst_of_kept_connections_is_shared(four):
    before = {worker: connections_of(worker) for worker in four.workers()}
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(fastcgi.Connection(four.connect_to)) for _ in range(120)]
        for connection in crowd:
            connection.send(fastcgi.request(variables(), keep=True))
        for connection in crowd:
            assert unknown(connection.reply())
        shares = gained(four, before)
        assert sum(shares) == 120
        assert max(shares) <= 2 * min(shares), shares


def test_kept_connections_are_shared(four):
    before = {worker: connections_of(worker) for worker in four.workers()}
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(kept_idle(four))
            time.sleep(ARRIVAL)
        assert_shared(gained(four, before), 64)


def test_short_requests_are_shared(start_pool):
    """Each request has a connection of its own. The debug log has a line for each connection that is answered."""
    pool = start_pool("--verbose", workers=4)
    wait_until(lambda: len(pool.logged("database: connected")) == 4, what="four workers")
    for _ in range(200):
        assert_error(pool.fcgi.ask(new_session(), new_url()), 404, 2038)
    answered = "connection [0-9]+: answered"
    wait_until(lambda: len(pool.logged(answered)) == 200, what="the log")
    answered = collections.Counter(line.split()[0] for line in pool.logged(answered))
    assert_shared(list(answered.values()), 200)
