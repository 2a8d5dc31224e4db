# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP requests as browsers and attackers make them, through nginx and Apache, and their exact answers: requests.txt."""

import dataclasses
import json
import pathlib
import re
import socket
import time

import pytest

from checked import CheckedPool
from client import compact
from merchant import MARKER
from servers import SOCKET_OF_OPERATORS, Nginx, location, shipped, upstream
from webservers import Apache

MAX_WAIT = 0.3
URL = f"https://shop.example/{MARKER}/a?b=c&d=é"
QUERY = f"fulfillment_url=https%3A%2F%2Fshop.example%2F{MARKER}%2Fa%3Fb%3Dc%26d%3D%C3%A9"
PLACES = {"url": "?" + QUERY, "f": QUERY, **{name: f"/instances/shop/sessions/{MARKER}-{name}"
                                             for name in ("paid", "unpaid", "unknown")}}
# Session ids of orders; all but one are paid. The id of each order is made of its name.
SESSIONS = {"paid": "-paid", "unpaid": "-unpaid", "admin": "-admin", "dots": "..a", "slash": "/a/b", "plus": "+a b",
            "percent": "%2F", "query": "?x=1&y#z", "utf8": "-é-東", "reserved": ";,:@$!*()", "long": "x" * 3000}

CODES = {(404, 2038): "unknown", (404, 2000): "no-instance", (404, 21): "no-endpoint", (400, 25): "missing:",
         (400, 26): "malformed:", (405, 20): "method"}
STATUS_OF = {"paid": 200, "unpaid": 202, "waits": 202, "preflight": 204,
             **{name: status for (status, _), name in CODES.items()}}
ANY_ORIGIN = {"access-control-allow-origin": "*", "access-control-expose-headers": "*"}
JSON = {**ANY_ORIGIN, "content-type": "application/json", "cache-control": "no-store"}
PREFLIGHT = {**ANY_ORIGIN, "access-control-allow-headers": "*", "access-control-allow-methods": "*"}
# What a web server adds.
OF_SERVERS = {"server", "date", "connection", "content-length", "transfer-encoding", "keep-alive"}


@dataclasses.dataclass
class Row:
    name: str
    request: bytes
    answers: dict  # by server

    def __str__(self):
        return self.name


def expand(text):
    text = re.sub(r"\{([^{}]+)\*(\d+)\}", lambda found: found[1] * int(found[2]), text)
    text = re.sub(r"\{(\w+)\}", lambda found: PLACES[found[1]], text)
    return text.encode("latin-1").decode("unicode_escape").encode("latin-1")


def compose(line, fields):
    """The bytes of a request, and of what follows it."""
    fields, _, rest = (part.strip() for part in fields.partition(";;"))
    fields = [field.strip() for field in fields.split(" ; ") if field.strip()]
    if line.startswith("raw:"):
        return expand(line[4:])
    for name, value in (("Host", "shop.example"), ("Connection", "close")):
        if f"-{name}" in fields:
            fields.remove(f"-{name}")
        else:
            fields.append(f"{name}: {value}")
    line = line if " HTTP/" in line or " http/" in line or " FTP/" in line else line + " HTTP/1.1"
    return expand("\\r\\n".join([line, *fields, "", ""]) + rest)


def read_table():
    text = pathlib.Path(__file__).with_name("requests.txt").read_text()
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name, request, fields, answer, *own = (cell.strip() for cell in re.split(r"(?<=\s)\|(?=\s|$)", line))
        answers = {server: cell or answer for server, cell in zip(("nginx", "apache"), own, strict=True)}
        yield Row(name, compose(request, fields), answers)


ROWS = list(read_table())


@dataclasses.dataclass
class Response:
    status: int
    fields: dict
    body: bytes


def parse(data, head):
    """All responses in what a connection has given. `head`: the first one has no body."""
    responses = []
    while data:
        lines, end, data = data.partition(b"\r\n\r\n")
        status, *lines = lines.decode("latin-1").split("\r\n")
        version, status, *_ = status.split(" ", 2)
        assert end and re.fullmatch(r"HTTP/1\.[01]", version)
        if status == "100":
            continue
        fields = [line.split(": ", 1) for line in lines]
        fields = [(name.lower(), value) for name, value in fields]
        assert len(dict(fields)) == len(fields), fields
        fields = dict(fields)
        if (head and not responses) or status == "204":
            body = b""
        elif fields.get("transfer-encoding") == "chunked":
            body, data = dechunk(data)
        else:
            length = int(fields.get("content-length", len(data)))
            assert len(data) >= length
            body, data = data[:length], data[length:]
        responses.append(Response(int(status), fields, body))
    return responses


def dechunk(data):
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        size = int(size, 16)
        body += data[:size]
        assert data[size:size + 2] == b"\r\n"
        data = data[size + 2:]
        if size == 0:
            return body, data


def name_of(response, seconds):
    """The name that the table has for an answer of the program; a status, if it is one of the web server."""
    own = {name: value for name, value in response.fields.items() if name not in OF_SERVERS}
    if response.status == 204:
        assert (own, response.body) == (PREFLIGHT, b"")
        return "preflight"
    if response.fields.get("content-type") != "application/json":
        return str(response.status)
    assert own == {**JSON, **({"allow": "GET, HEAD, OPTIONS"} if response.status == 405 else {})}
    content = json.loads(response.body)
    assert response.body.decode() == compact(content)
    if response.status in (200, 202):
        order, = content.values()
        assert content == {"order_id": order}
        name = order.removeprefix(f"{MARKER}-order-")
        paid = name if name == "paid" else f"paid:{name}"
        return paid if response.status == 200 else ["unpaid", "waits"][seconds >= MAX_WAIT]
    assert set(content) <= {"code", "hint", "detail"} and content["hint"]
    return CODES[response.status, content["code"]] + content.get("detail", "")


def assert_head(response, answer):
    """As the answer to GET, without the body."""
    assert response.status == STATUS_OF[re.sub(":.*", ":", answer)]
    assert JSON.items() <= response.fields.items()
    assert int(response.fields.get("content-length", 1)) > 0


def send(port, request):
    """All that comes back until the connection is closed, and how long that takes."""
    begun, received = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        try:
            connection.sendall(request)
            while more := connection.recv(65536):
                received += more
        except (BrokenPipeError, ConnectionResetError):
            pass  # it does not read what it has refused
    return received, time.monotonic() - begun


@pytest.fixture(scope="module")
def orders(merchant):
    for name, session in SESSIONS.items():
        merchant.contract(MARKER + session, URL, instance="admin" if name == "admin" else "shop",
                          order_id=f"{MARKER}-order-{name}", paid=name != "unpaid")


@pytest.fixture(scope="module")
def pool(program, database, orders):
    # Apache's user is another one than the pool's.
    with CheckedPool(program, "--workers", "2", "--max-wait", str(int(MAX_WAIT * 1000)), "--socket-mode", "0666",
                     database=database) as started:
        yield started


def open_apache(pool):
    site = shipped("conf/apache-proxy.conf").replace(SOCKET_OF_OPERATORS, str(pool.socket))
    return Apache(site, ["proxy", "proxy_fcgi", "setenvif"])


def open_nginx(pool):
    return Nginx(http=upstream(pool.socket), server=location())


@pytest.fixture(scope="module", params=[open_nginx, open_apache], ids=["nginx", "apache"])
def server(request, pool):
    pool.directory.chmod(0o755)
    with request.param(pool) as started:
        yield started


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_requests(server, row):
    answer = row.answers[server.name]
    received, seconds = send(server.port, row.request)
    if answer.startswith("bare:"):
        assert received.decode() == compact({"order_id": f"{MARKER}-order-{answer[5:]}"})
        return
    head = row.request.startswith(b"HEAD")
    responses = parse(received, head)
    if head:
        response, = responses
        assert_head(response, answer)
    else:
        assert ", ".join(name_of(response, seconds) for response in responses) == answer


def test_the_pool_goes_on(server, pool):
    """After all of that."""
    received, _ = send(server.port, ROWS[0].request)
    assert name_of(*parse(received, False), 0) == "paid"
    assert len(pool.workers()) == 2
