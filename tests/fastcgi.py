# SPDX-License-Identifier: GPL-3.0-or-later
"""A FastCGI client on the raw socket, in pieces from which hostile records can be made too."""

import collections
import dataclasses
import socket
import struct
import time

BEGIN_REQUEST, ABORT_REQUEST, END_REQUEST, PARAMS, STDIN, STDOUT, STDERR, DATA = range(1, 9)
GET_VALUES, GET_VALUES_RESULT, UNKNOWN_TYPE = range(9, 12)
RESPONDER, AUTHORIZER, FILTER = range(1, 4)
REQUEST_COMPLETE, CANT_MPX_CONN, OVERLOADED, UNKNOWN_ROLE = range(4)
KEEP_CONN = 1

HEADER = struct.Struct("!BBHHBx")
Record = collections.namedtuple("Record", "type id content")


def record(kind, content=b"", id=1, version=1, length=None, padding=0):
    """One record. `length` replaces the true length in its header."""
    header = HEADER.pack(version, kind, id, len(content) if length is None else length, padding)
    return header + content + b"\0" * padding


def stream(kind, content, id=1):
    """The records of a whole stream, the empty one that ends it included."""
    parts = [content[at:at + 65535] for at in range(0, len(content), 65535)]
    return b"".join(record(kind, part, id) for part in [*parts, b""])


def begin(id=1, role=RESPONDER, keep=False):
    return record(BEGIN_REQUEST, struct.pack("!HB5x", role, KEEP_CONN if keep else 0), id)


def abort(id=1):
    return record(ABORT_REQUEST, id=id)


def size(number):
    """The length of a name or a value as a pair has it."""
    return bytes([number]) if number < 128 else struct.pack("!I", number | 0x80000000)


def pairs(values):
    """Name-value pairs, from a dict or a list of tuples."""
    encoded = b""
    for name, value in values.items() if isinstance(values, dict) else values:
        name, value = _bytes(name), _bytes(value)
        encoded += size(len(name)) + size(len(value)) + name + value
    return encoded


def read_pairs(content):
    values = {}
    while content:
        lengths = []
        for _ in range(2):
            wide = content[0] >> 7
            lengths.append(int.from_bytes(content[:4], "big") & 0x7fffffff if wide else content[0])
            content = content[4 if wide else 1:]
        name, value = content[:lengths[0]], content[lengths[0]:sum(lengths)]
        values[name.decode()] = value.decode()
        content = content[sum(lengths):]
    return values


def variables(uri, method="GET", **more):
    """The parameters that a web server sends for a request."""
    path, _, query = uri.partition("?")
    return {"GATEWAY_INTERFACE": "CGI/1.1", "SERVER_PROTOCOL": "HTTP/1.1", "REQUEST_METHOD": method,
            "REQUEST_URI": uri, "SCRIPT_NAME": path, "QUERY_STRING": query, **more}


def request(values, id=1, keep=False, role=RESPONDER, body=b""):
    """All records of a request; `values` are its parameters."""
    return begin(id, role, keep) + stream(PARAMS, pairs(values), id) + stream(STDIN, body, id)


@dataclasses.dataclass
class Reply:
    status: int
    headers: dict
    body: bytes
    errors: bytes
    app_status: int
    protocol_status: int


class Connection:
    """A connection to the pool at `address`, which is a path or (host, port)."""

    def __init__(self, address, timeout=10):
        self.socket = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.socket.settimeout(timeout)
        self.socket.connect(address)
        self.received = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send(self, *records):
        self.socket.sendall(b"".join(records))

    def read(self):
        """The next record, or None where the peer has closed."""
        header = self._read(HEADER.size)
        if header is None:
            return None
        _, kind, id, length, padding = HEADER.unpack(header)
        content = self._read(length + padding)
        assert content is not None, "closed within a record"
        return Record(kind, id, content[:length])

    def _read(self, length):
        while len(self.received) < length:
            try:
                more = self.socket.recv(65536)
            except ConnectionResetError:
                more = b""
            if not more:
                assert not self.received, f"closed after {self.received!r}"
                return None
            self.received += more
        piece, self.received = self.received[:length], self.received[length:]
        return piece

    def reply(self, id=1):
        """Read records until END_REQUEST; None where the peer closes instead."""
        output, errors = b"", b""
        while (got := self.read()) is not None:
            assert got.id == id, f"{got} is not for request {id}"
            if got.type == STDOUT:
                output += got.content
            elif got.type == STDERR:
                errors += got.content
            elif got.type == END_REQUEST:
                return reply_of(output, errors, *struct.unpack("!IB3x", got.content))
            else:
                raise AssertionError(f"unexpected {got}")
        assert not output, f"closed after {output!r}"
        return None

    def seconds_until_closed(self):
        """Wait for the peer to close without a word, and say how long that took."""
        begun = time.monotonic()
        got = self.read()
        assert got is None, f"{got} instead of the end"
        return time.monotonic() - begun


def reply_of(output, errors, app_status, protocol_status):
    """The Reply that was sent as this content of STDOUT and STDERR and in END_REQUEST."""
    head, _, body = output.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode("ascii").split("\r\n") if line)
    status = int(headers.pop("Status", "200 OK").split()[0])
    return Reply(status, headers, body, errors, app_status, protocol_status)


def _bytes(text):
    return text if isinstance(text, bytes) else text.encode()
