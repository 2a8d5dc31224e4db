# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests that are answered at once: wrk on a candidate behind its web server, pgbench on the database alone."""

import contextlib
import glob
import http.client
import json
import pathlib
import statistics
import subprocess
import tempfile

import candidates
import processes
import shop

HERE = pathlib.Path(__file__).resolve().parent
CONNECTIONS = 64
RAW_CLIENTS = 8
# Where this program has not been measured before.
PROBE_BATCH = 32


def wrk(port, paths, seconds, connections=CONNECTIONS):
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "-s", HERE / "wrk.lua",
               f"http://127.0.0.1:{port}", "--", paths]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def check(port, contract):
    """A candidate that answers something else would be quick in vain."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", contract.path())
        answer = connection.getresponse()
        body = answer.read()
    if answer.status != 200 or "order_id" not in json.loads(body):
        raise RuntimeError(f"a paid session was answered with {answer.status} {body}")


def measure(name, keep, build, database, paths, seconds):
    """The figures of one candidate; `batch` is the mean number of requests for a statement."""
    before = database.transactions()
    figures = _measure_rates(name, keep, build, database, paths, seconds)
    # A backend reports its last statements when it ends.
    processes.wait_until(lambda: not database.backends(), what="the candidate's backends are gone")
    statements = database.transactions() - before
    return {**figures, "batch": figures["requests"] / statements} if statements else figures


def _measure_rates(name, keep, build, database, paths, seconds):
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(candidates.start_candidate(name, build, database.database))
        # By a web server of its own: a connection that nginx keeps would pin a process of a blocking candidate.
        with candidates.web_server(pool.socket, keep=False) as web:
            check(web.port, shop.paid(1)[0])
        web = stack.enter_context(candidates.web_server(pool.socket, keep))
        cpu = processes.Cpu(web=web, program=pool, database=database.postgres)
        result = wrk(web.port, paths, seconds)
        return figures(result, cpu.seconds())


def measure_probe(build, database, batch, seconds):
    """What the database has to do in any case, in batches of that many keys."""
    with tempfile.TemporaryDirectory() as directory:
        keys = pathlib.Path(directory) / "keys"
        serials = database.merchant_serials()
        keys.write_text("".join(f"{serials[paid.instance]} {paid.url} {paid.session}\n" for paid in shop.paid(20_000)))
        cpu = processes.Cpu(database=database.postgres)
        command = [build / "tests/bench/bench-probe", database.database, HERE / "probe.sql", keys, batch, seconds]
        done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
        # The backend's time counts for its parent once it has ended.
        processes.wait_until(lambda: not database.backends(), what="the probe's backend is gone")
        return {"batch": batch, **figures({"requests": int(done.stdout), "seconds": seconds}, cpu.seconds())}


def measure_raw(database, seconds):
    with tempfile.TemporaryDirectory() as directory:
        log = pathlib.Path(directory) / "log"
        cpu = processes.Cpu(database=database.postgres)
        output = _pgbench(database, seconds, directory, log)
        spent = cpu.seconds()
        times = sorted(int(line.split()[2]) / 1000 for file in glob.glob(f"{log}*")
                       for line in pathlib.Path(file).read_text().splitlines())
    result = {"requests": _pgbench_count(output), "seconds": seconds, "p50": statistics.median(times),
              "p99": times[len(times) * 99 // 100], "max": times[-1], "errors": 0}
    return figures(result, spent)


def _pgbench(database, seconds, directory, log):
    script = pathlib.Path(directory) / "script.sql"
    script.write_text(shop.pgbench_script())
    command = ["pgbench", "-n", "-M", "prepared", "-c", RAW_CLIENTS, "-j", 2, "-T", seconds, "-f", script,
               "--log", "--log-prefix", log, "--sampling-rate", 0.1, database.database]
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


def _pgbench_count(output):
    line = next(line for line in output.splitlines() if line.startswith("number of transactions actually processed"))
    return int(line.split(":")[1].split("/")[0])


def figures(result, cpu):
    """What wrk or pgbench has counted, with rates, and the CPU seconds of each part for 10,000 requests."""
    per_10_000 = {f"cpu_{part}": spent / result["requests"] * 10_000 for part, spent in cpu.items()}
    return {"rate": result["requests"] / result["seconds"], **result, **per_10_000}
