# SPDX-License-Identifier: GPL-3.0-or-later
"""Mutated FastCGI streams against the program: see mutate.c, which makes and sends them."""

import concurrent.futures
import dataclasses
import struct
import subprocess
import time

import fastcgi
from fastcgi import GET_VALUES, PARAMS, STDIN
from good import PAID, UNKNOWN, UNPAID, GoodClient, elapsed, request

# AddressSanitizer keeps what was freed, to find who uses it: memory could not be judged.
SMALL_QUARANTINE = {"ASAN_OPTIONS": "quarantine_size_mb=1:thread_local_quarantine_size_kb=64:detect_leaks=1"}
BYTES_ALLOWED = 16 * 2**20


def corpus():
    """Streams of all kinds that are sound, or are not for one reason."""
    params = fastcgi.pairs(fastcgi.variables("/instances/shop/sessions/x?fulfillment_url=a:b"))
    names = fastcgi.pairs({"FCGI_MPXS_CONNS": "", "FCGI_MAX_CONNS": "", "FCGI_MAX_REQS": ""})
    large = fastcgi.pairs({"HTTP_COOKIE": "c" * 60000})
    for session in (PAID, UNPAID, UNKNOWN):
        yield request(session)
        yield request(session, keep=True) * 3
        yield request(session, timeout_ms=50, keep=True) + request(session, id=2)
        yield request(session, body=b"x" * 5000)
    yield request(timeout_ms=10000) + fastcgi.abort()
    yield request(timeout_ms=10000, keep=True)
    yield fastcgi.record(GET_VALUES, names, id=0) + request(keep=True) + fastcgi.record(GET_VALUES, names, id=0)
    yield fastcgi.record(99, b"abc", id=0, padding=5) * 3
    yield fastcgi.begin(role=fastcgi.FILTER) + request()
    yield fastcgi.begin() + b"".join(fastcgi.record(PARAMS, params[n:n + 1], padding=n % 9) for n in range(len(params))) + \
        fastcgi.record(PARAMS) + fastcgi.record(STDIN)
    yield fastcgi.begin() + fastcgi.stream(PARAMS, large + params) + fastcgi.record(STDIN)
    yield fastcgi.begin() + fastcgi.stream(PARAMS, params * 400) + fastcgi.record(STDIN)
    yield fastcgi.request({"MERCHANT_SESSIONS_METRICS": "1", "REQUEST_METHOD": "GET"}, keep=True) * 2
    yield fastcgi.request(fastcgi.variables("/sessions/" + "%C3%A9" * 500 + "?fulfillment_url=a:b&timeout_ms=" + "9" * 50))
    for method in ("HEAD", "OPTIONS", "POST", ""):
        yield fastcgi.request(fastcgi.variables("/sessions/a?fulfillment_url=a:b", method), keep=True)
    yield fastcgi.request({"SCRIPT_NAME": "/a", "PATH_INFO": "/sessions/b", "QUERY_STRING": "fulfillment_url=a:b"})
    yield fastcgi.request({})


@dataclasses.dataclass
class Report:
    streams: int
    seconds: float
    records: dict  # that came back, by type
    answers: int   # of the good client
    slowest: float
    grown: int     # bytes

    def __str__(self):
        records = ", ".join(f"{count:,} of type {type}" for type, count in sorted(self.records.items()))
        return (f"{self.streams:,} streams in {self.seconds:.0f} s; {records} came back; a good client was answered "
                f"{self.answers:,} times, p99 and slowest {self.slowest}; memory grew by {self.grown / 2**20:.1f} MiB; "
                f"descriptors as before")


def run(victim, mutate, streams, seed, senders=16):
    """Send so many streams to the pool; each sender takes a part of them. Raises if anything is not as it should be."""
    path = victim.pool.directory / "corpus"
    path.write_bytes(b"".join(struct.pack("!I", len(stream)) + stream for stream in corpus()))
    share = -(-streams // senders)

    def send(first):
        done = subprocess.run([mutate, victim.pool.connect_to, path, str(seed), str(first), str(share)], check=False,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return {int(type): int(count) for type, count in (line.split() for line in done.stdout.splitlines())}

    begun = time.monotonic()
    with GoodClient(victim.pool.connect_to) as client, concurrent.futures.ThreadPoolExecutor(senders) as executor:
        results = list(executor.map(send, range(0, share * senders, share)))
    seconds = elapsed(begun)
    records = {type: sum(result.get(type, 0) for result in results) for type in set().union(*results)}
    grown = victim.check(BYTES_ALLOWED)
    slowest = f"{client.p99() * 1000:.1f} and {max(client.seconds) * 1000:.1f} ms"
    return Report(share * senders, seconds, records, len(client.seconds), slowest, grown)
