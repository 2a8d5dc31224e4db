# SPDX-License-Identifier: GPL-3.0-or-later
"""How evenly four workers share what comes in: long polls, and requests on new and on kept connections.

No web server between. A connection's worker is the process that holds the other end of it; /proc tells which.
"""

import contextlib
import itertools
import pathlib
import selectors
import socket
import time

import candidates
import fastcgi
import processes
import shop

WORKERS = 4
LONG_POLLS = 240
LONG_POLL_PAUSE = 0.005
# A worker that took all of them would refuse most.
MAX_WAITING = 100
CONNECTIONS = 64
KEPT_REQUESTS = 10_000
NEW_REQUESTS = 8_000


def measure(build, database):
    """What was shared → for each worker how many."""
    with _pool(build, database) as pool:
        parked, refused = _long_polls(pool, database.visitors(LONG_POLLS))
    with _pool(build, database) as pool:
        kept = _requests(pool, KEPT_REQUESTS, reuse=True)
    with _pool(build, database) as pool:
        new = _requests(pool, NEW_REQUESTS, reuse=False)
    return {"parked": parked, "refused": refused, "kept": kept, "new": new}


@contextlib.contextmanager
def _pool(build, database):
    with candidates.program(build, database.database, "--workers", WORKERS, "--max-waiting", MAX_WAITING,
                            address=f"127.0.0.1:{processes.free_port()}") as pool:
        candidates.check_directly(pool)
        time.sleep(0.5)  # all workers connect to the database
        yield pool


def _request(path, keep=False):
    return fastcgi.request(fastcgi.variables(path), keep=keep)


def _long_polls(pool, visitors):
    """For each worker the long polls that it has parked, and how many were answered at once."""
    before = _descriptors(pool)
    with contextlib.ExitStack() as stack:
        for visitor in visitors:
            connection = stack.enter_context(fastcgi.Connection(pool.connect_to))
            connection.send(_request(visitor.path(timeout_ms=20_000)))
            time.sleep(LONG_POLL_PAUSE)
        time.sleep(1)
        parked = [now - then for now, then in zip(_descriptors(pool), before)]
    return parked, len(visitors) - sum(parked)


def _descriptors(pool):
    return [processes.descriptors(worker) for worker in pool.workers()]


def _requests(pool, total, reuse):
    """For each worker the requests that it has answered, of `total`, of which CONNECTIONS are open at a time.

    Each is on a connection that has just been answered, or on a new one. Connections stay open until the end, so that
    they can be attributed.
    """
    requests = (_request(contract.path(), keep=True) for contract in itertools.cycle(shop.paid(1000)))
    answered = {}  # connection → requests
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        def connect():
            connection = stack.enter_context(fastcgi.Connection(pool.connect_to))
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            answered[connection] = 0
            return connection

        for _ in range(CONNECTIONS):
            connect().send(next(requests))
        for done in range(1, total + 1):
            connection = _receive(selector)
            answered[connection] += 1
            if done + CONNECTIONS <= total:
                (connection if reuse else connect()).send(next(requests))
        return _by_worker(pool, answered)


def _receive(selector):
    """Wait for one reply, and return its connection."""
    key, _ = selector.select()[0]
    reply = key.data.reply()
    if reply is None or reply.status != 200:
        raise RuntimeError(f"a paid session was answered with {reply}")
    return key.data


def _by_worker(pool, answered):
    workers = pool.workers()
    holders = {inode: worker for worker in workers for inode in processes.sockets(worker)}
    inodes = _server_sockets(pool.connect_to[1])
    counts = dict.fromkeys(workers, 0)
    for connection, requests in answered.items():
        _, port = connection.socket.getsockname()
        counts[holders[inodes[port]]] += requests
    return [*counts.values()]


def _server_sockets(port):
    """The client's port → the inode of the server's socket, of all connections to a port of 127.0.0.1."""
    server = f"{int.from_bytes(socket.inet_aton('127.0.0.1'), 'little'):08X}:{port:04X}"
    lines = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
    rows = (line.split() for line in lines)
    return {int(row[2].split(":")[1], 16): row[9] for row in rows if row[1] == server}
