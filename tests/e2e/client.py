# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests to the pool: through nginx as shops make them, or straight as nginx makes them."""

import concurrent.futures
import dataclasses
import http.client
import json
import time
import urllib.parse

import fastcgi


@dataclasses.dataclass
class Answer:
    status: int
    headers: dict
    body: bytes
    seconds: float

    @property
    def json(self):
        return json.loads(self.body)


def target(session, url=None, instance=None, timeout_ms=None):
    """The path and query of a request, encoded as a browser's encodeURIComponent does."""
    path = f"/instances/{instance}" if instance else ""
    parameters = {"fulfillment_url": url, "timeout_ms": timeout_ms}
    query = urllib.parse.urlencode({name: value for name, value in parameters.items() if value is not None},
                                   quote_via=urllib.parse.quote, safe="")
    return f"{path}/sessions/{urllib.parse.quote(session, safe='')}?{query}"


class Client:
    """`ask` builds the request from its parts; `get` takes path and query as they stand."""

    def ask(self, session, url, instance="shop", timeout_ms=None, **options):
        return self.get(target(session, url, instance, timeout_ms), **options)

    def later(self, *arguments, **options):
        """`ask` in a thread. Returns a tenth of a second later: the request is parked by then, if it has to wait."""
        executor = concurrent.futures.ThreadPoolExecutor(1)
        future = executor.submit(self.ask, *arguments, **options)
        executor.shutdown(wait=False)
        time.sleep(0.1)
        return future


class Http(Client):
    """A new connection to 127.0.0.1:`port` each time, from the address `source`: all of 127.0.0.0/8 are this host's."""

    def __init__(self, port, source="127.0.0.1"):
        self.port = port
        self.source = source

    def get(self, uri, method="GET", body=None):
        begun = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=70, source_address=(self.source, 0))
        try:
            connection.request(method, uri, body)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        return Answer(response.status, dict(response.getheaders()), content, time.monotonic() - begun)


class Fcgi(Client):
    """A new connection to the pool's own socket each time."""

    def __init__(self, address):
        self.address = address

    def get(self, uri, method="GET", body=b"", **more):
        return self.send(fastcgi.variables(uri, method, **more), body)

    def send(self, variables, body=b""):
        begun = time.monotonic()
        with fastcgi.Connection(self.address, timeout=70) as connection:
            connection.send(fastcgi.request(variables, body=body))
            reply = connection.reply()
        assert reply is not None, "closed without a reply"
        assert (reply.protocol_status, reply.app_status, reply.errors) == (fastcgi.REQUEST_COMPLETE, 0, b"")
        return Answer(reply.status, reply.headers, reply.body, time.monotonic() - begun)


def assert_order(answer, status, order_id):
    assert (answer.status, answer.body.decode()) == (status, compact({"order_id": order_id}))


def assert_error(answer, status, code, detail=None):
    """An ErrorDetail and nothing else; the hint is our own words."""
    assert answer.status == status, answer
    assert answer.body.decode() == compact(answer.json)
    assert list(answer.json) == (["code", "hint", "detail"] if detail else ["code", "hint"]), answer.body
    assert (answer.json["code"], answer.json.get("detail")) == (code, detail), answer.body
    assert answer.json["hint"].strip()


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
