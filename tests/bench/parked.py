# SPDX-License-Identifier: GPL-3.0-or-later
"""Long polls parked on one worker, through web servers: memory, the requests that come in beside them, SIGTERM."""

import contextlib
import math
import random
import time

import candidates
import plain
import processes
import shop
from processes import wait_until
from waiters import TIMEOUT_MS, Waiters

# nginx has two connections for each request, out of 4096 of its one process.
PER_NGINX = 1900
FRESH_ROUNDS = 3


def measure(count, build, database, paths, seconds, idle_seconds, payments):
    """The figures with `count` long polls parked on one worker."""
    contracts = shop.unpaid(count)
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(candidates.program(
            build, database.database, "--workers", 1, "--max-waiting", count, "--max-wait", TIMEOUT_MS))
        worker, = pool.workers()
        fresh = stack.enter_context(candidates.web_server(pool.socket, keep=True))
        webs = [stack.enter_context(candidates.web_server(pool.socket, keep=True, workers=1))
                for _ in range(math.ceil(count / PER_NGINX))]
        session = stack.enter_context(database.session())

        plain.check(fresh.port, shop.paid(1)[0])
        plain.wrk(fresh.port, paths, 1, connections=8)
        without = _fresh_p99(fresh, paths, seconds)
        memory = processes.resident_bytes(worker)
        waiters = stack.enter_context(Waiters(build, contracts, [web.port for web in webs], worker))
        waiters.wait_parked()
        memory = processes.resident_bytes(worker) - memory

        idle = _idle(pool, database, idle_seconds)
        latencies = _pay(session, waiters, contracts[:payments])
        meanwhile = _fresh_p99(fresh, paths, seconds)
        return {"count": count, "bytes": memory / count, **idle, "commit_to_answer": latencies,
                "p99_without": without, "p99_with": meanwhile, "stop": _stop(pool, waiters)}


def _fresh_p99(web, paths, seconds):
    rounds = [plain.wrk(web.port, paths, seconds, connections=8)["p99"] for _ in range(FRESH_ROUNDS)]
    time.sleep(0.5)  # nginx closes the connections of requests that wrk has not waited for
    return rounds


def _idle(pool, database, seconds):
    cpu = processes.Cpu(program=pool, database=database.postgres)
    time.sleep(seconds)
    return {f"cpu_{part}": spent / seconds for part, spent in cpu.seconds().items()}


def _pay(session, waiters, contracts):
    """Pay one after another; return the times from COMMIT to the answer, in milliseconds, sorted."""
    committed = []
    for contract in contracts:
        time.sleep(random.uniform(0.01, 0.05))
        session.run(contract.set_paid(True))
        committed.append(time.monotonic())
    wait_until(lambda: len(waiters.answers()) >= len(contracts), 90, "answers to the payments")
    answers = waiters.answers()
    for contract in contracts:
        session.run(contract.set_paid(False))
    if any(answers.get(n, (0,))[0] != 200 for n in range(len(contracts))):
        raise RuntimeError("a paid session was not answered with 200")
    return sorted((answers[n][1] - moment) * 1000 for n, moment in enumerate(committed))


def _stop(pool, waiters):
    """Milliseconds from SIGTERM to the last answer."""
    answered = len(waiters.answers())
    moment = time.monotonic()
    pool.stop(within=20)
    waiters.process.wait(20)
    answers = waiters.answers()
    last = list(answers.values())[answered:]
    if len(answers) != waiters.parked or any(status != 202 for status, _ in last):
        raise RuntimeError(f"SIGTERM: {len(answers)} of {waiters.parked} answered, "
                           f"statuses {sorted({status for status, _ in last})}")
    return (max(arrival for _, arrival in last) - moment) * 1000


def first_answer(build, database):
    """Milliseconds from the start of the program to its first answer."""
    contract = shop.paid(1)[0]
    pool = candidates.program(build, database.database, by="descriptor")
    with candidates.web_server(pool.socket, keep=False) as web:
        moment = time.monotonic()
        with pool:
            plain.check(web.port, contract)
            return (time.monotonic() - moment) * 1000
