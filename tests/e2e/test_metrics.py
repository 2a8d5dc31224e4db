# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics for Prometheus: right after known requests, summed over the workers, whatever happens to these."""

import contextlib
import http.client
import os
import re
import signal
import threading
import time

import pytest

import fastcgi
from checked import CheckedNginx, CheckedPool, open_site
from client import target
from merchant import MARKER, new_session, new_url
from metrics import PREFIX, Samples, dashboard_queries, metrics_location, names_in
from own_cluster import database, merchant  # noqa: F401
from processes import children, free_port, wait_until
from servers import ROOT, Postgres, location, upstream

KILLED = "killed by signal 9"


@pytest.fixture(scope="module")
def postgres():
    """Some tests stop it."""
    with Postgres() as cluster:
        yield cluster


@pytest.fixture
def start(program, database):
    """A pool behind nginx that answers for metrics too."""
    with contextlib.ExitStack() as stack:
        def enter(*options, workers=4, **more):
            pool = CheckedPool(program, "--workers", str(workers), *options, database=database, **more)
            http = upstream(pool.socket).replace("unix:", "" if pool.address else "unix:")
            site = stack.enter_context(open_site(pool, http, location() + metrics_location()))
            wait_until(lambda: scrape(site)["database_up"] == max(workers, 1), 10, "workers that are connected")
            return site
        yield enter


def scrape(site):
    answer = site.http.get("/metrics")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert MARKER not in answer.body.decode()
    return Samples(answer.body.decode())


def wait_for(site, **wanted):
    """Wait until the samples have these values, and return them."""
    def found():
        samples = scrape(site)
        return samples if all(samples[name] == value for name, value in wanted.items()) else None
    return wait_until(found, 10, wanted)


def wait_on_a_connection(site):
    """A request that waits, for as long as its connection is open."""
    connection = fastcgi.Connection(site.pool.connect_to)
    connection.send(fastcgi.request(fastcgi.variables(target(new_session(), new_url(), "shop", 20000))))
    return connection


# Numbers

def test_known_requests(start, merchant):
    site = start()
    session, url = new_session(), new_url()
    merchant.contract(session, url, paid=True)
    unpaid, unpaid_url = new_session(), new_url()
    merchant.offer(unpaid, unpaid_url)
    for _ in range(8):
        assert site.http.ask(session, url).status == 200
    for _ in range(4):
        assert site.http.ask(unpaid, unpaid_url).status == 202
    for uri, method in [(target(new_session(), url, "shop"), "GET"), (target(session, url, "nobody"), "GET"),
                        (target(session, instance="shop"), "GET"), (target(session, "no-uri", "shop"), "GET"),
                        (target(session, url), "OPTIONS"), (target(session, url), "POST"),
                        (target(session, url, "shop"), "HEAD"), ("/sessions/", "GET")]:
        site.http.get(uri, method)
    samples = scrape(site)
    assert samples.answers() == {(200, 0): 9, (202, 0): 4, (204, 0): 1, (400, 25): 1, (400, 26): 1, (404, 21): 1,
                                 (404, 2000): 1, (404, 2038): 1, (405, 20): 1}
    asked = 9 + 4 + 1 + 1
    assert samples['answer_seconds_count{waited="no"}'] == asked
    assert samples['answer_seconds_count{waited="yes"}'] == 0
    assert 0 < samples['answer_seconds_sum{waited="no"}'] < 30
    for name in ("lookups_total", "batch_keys_sum", "batch_keys_count", "batch_seconds_count"):
        assert samples[name + '{question="everything"}'] == asked, name
        assert samples[name + '{question="payment"}'] == 0, name
    assert samples['batch_keys_bucket{question="everything",le="1"}'] == asked
    assert samples["workers"] == samples["database_up"] == 4
    assert samples["unanswered_total"] == samples["database_reconnects_total"] == 0
    assert any(name.startswith('build_info{version="') for name in samples)


def test_requests_that_wait(start, merchant):
    site = start("--max-waiting", "100")
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    waiting = [site.http.later(session, url, timeout_ms=20000) for _ in range(6)]
    waiting.append(site.http.later(new_session(), new_url(), timeout_ms=3000))
    samples = wait_for(site, waiting=7)
    assert samples["waiting_limit"] == 400
    assert samples["connections"] >= 7
    assert samples['answer_seconds_count{waited="yes"}'] == 0
    merchant.pay(order)
    assert [request.result().status for request in waiting] == 6 * [200] + [404]
    samples = wait_for(site, waiting=0)
    assert samples.answers() == {(200, 0): 6, (404, 2038): 1}
    assert samples['answer_seconds_count{waited="no"}'] == 0
    assert samples['answer_seconds_count{waited="yes"}'] == 7
    assert samples['answer_seconds_bucket{waited="yes",le="0.05"}'] == 0
    assert samples['lookups_total{question="payment"}'] >= 1
    # From the check that found the payment, which was some time after the wait began.
    assert samples["check_to_answer_seconds_count"] == 6
    assert samples["check_to_answer_seconds_sum"] < samples['answer_seconds_sum{waited="yes"}']


def test_a_client_that_leaves(start):
    site = start()
    with wait_on_a_connection(site):
        wait_for(site, waiting=1)
    samples = wait_for(site, waiting=0)
    assert samples["unanswered_total"] == 1
    assert samples.answers() == {}


def test_a_database_that_goes_and_comes_back(start, postgres):
    site = start("--db-timeout", "300")
    site.pool.expect("database: ")
    postgres.stop()
    try:
        wait_for(site, database_up=0)
        assert site.http.ask(new_session(), new_url()).status == 500
        assert scrape(site).answers() == {(500, 53): 1}
    finally:
        postgres.start()
    assert wait_for(site, database_up=4)["database_reconnects_total"] == 4


# Workers

def test_a_killed_worker(start):
    """The counters of a worker that died stay, its gauges go."""
    site = start()
    site.pool.expect(KILLED)
    site.nginx.allow_errors = True
    for _ in range(20):
        site.fcgi.ask(new_session(), new_url())
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(wait_on_a_connection(site))
        before = wait_for(site, waiting=4)
        for pid in children(site.pool.pid):
            os.kill(pid, signal.SIGKILL)
    after = wait_for(site, workers=4, database_up=4, waiting=0, **{'worker_restarts_total{reason="died"}': 4})
    assert after['worker_restarts_total{reason="replaced"}'] == 0
    assert after.answers() == before.answers() == {(404, 2038): 20}
    assert after["database_reconnects_total"] == 0
    for _ in range(5):
        site.fcgi.ask(new_session(), new_url())
    assert scrape(site).answers() == {(404, 2038): 25}


def test_workers_that_are_replaced(start):
    site = start(workers=2)
    for _ in range(10):
        site.fcgi.ask(new_session(), new_url())
    site.pool.send(signal.SIGHUP)
    wait_until(lambda: site.pool.logged("workers replaced"), 10, "the line")
    samples = wait_for(site, workers=2, database_up=2)
    assert samples.answers() == {(404, 2038): 10}
    assert samples['worker_restarts_total{reason="died"}'] == 0
    assert samples['worker_restarts_total{reason="replaced"}'] == 2


def test_no_counter_ever_falls(start):
    """Scrape all the time, from any worker, while workers serve, die and are replaced."""
    site = start(workers=2)
    site.pool.expect(KILLED)
    site.nginx.allow_errors = True
    stop, answered = threading.Event(), []

    def ask():
        while not stop.is_set():
            with contextlib.suppress(AssertionError, OSError):
                answered.append(site.fcgi.ask(new_session(), new_url()).status)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        last, scrapes, kills = {}, 0, 0
        site.pool.send(signal.SIGHUP)
        begun = time.monotonic()
        while (passed := time.monotonic() - begun) < 4:
            if passed > kills + 0.5:
                os.kill(site.pool.workers()[0], signal.SIGKILL)
                kills += 1
            samples = samples_or_none(site)
            if samples:
                assert [name for name, value in last.items() if samples[name] < value] == []
                last = samples.counters()
                scrapes += 1
    finally:
        stop.set()
        asking.join()
    samples = wait_until(lambda: samples_or_none(site), 5, "samples")
    assert scrapes > 40 and samples['worker_restarts_total{reason="died"}'] > 1
    # A worker may have been killed after it had counted an answer, and before that had left.
    assert len(answered) <= sum(samples.answers().values()) <= len(answered) + kills


def samples_or_none(site):
    """None if the worker that was asked has been killed."""
    answer = site.http.get("/metrics")
    return Samples(answer.body.decode()) if answer.status == 200 else None


def test_without_workers(start):
    site = start(workers=0)
    site.http.ask(new_session(), new_url())
    samples = scrape(site)
    assert samples["workers"] == samples["database_up"] == 1
    assert samples.answers() == {(404, 2038): 1}


def test_over_tcp(start):
    """The text is longer than one record."""
    site = start(address=f"127.0.0.1:{free_port()}")
    assert len(site.http.get("/metrics").body) > 8192
    answer = site.http.get("/metrics", "HEAD")
    assert (answer.status, answer.body) == (200, b"")


# Who may ask

def is_metrics(answer):
    return answer.status == 200 or b"merchant_sessions_" in answer.body or "text/plain" in answer.headers.get("Content-Type", "")


HOSTILE_HEADERS = {"MERCHANT_SESSIONS_METRICS": "1", "Merchant-Sessions-Metrics": "1", "HTTP_MERCHANT_SESSIONS_METRICS": "1",
                   "X-Original-Url": "/metrics", "X-Rewrite-Url": "/metrics", "Content-Type": "MERCHANT_SESSIONS_METRICS=1"}


def test_nothing_from_outside_asks_for_them(program, database):
    """Not even where nginx passes on all header fields, those with an underscore included."""
    server = "underscores_in_headers on;" + location().replace("fastcgi_pass_request_headers off;",
                                                               "fastcgi_pass_request_headers on;", 1)
    server = server.replace("fastcgi_pass_request_body off;", "fastcgi_pass_request_body on;", 1)
    pool = CheckedPool(program, "--workers", "1", database=database)
    with pool, CheckedNginx(http=upstream(pool.socket), server=server) as nginx:
        for uri in ["/sessions/metrics", "/sessions/MERCHANT_SESSIONS_METRICS=1?MERCHANT_SESSIONS_METRICS=1",
                    "/metrics/sessions/x?metrics=1&MERCHANT_SESSIONS_METRICS=1", "/sessions/x/metrics",
                    target(new_session(), new_url() + "&MERCHANT_SESSIONS_METRICS=1", "shop")]:
            for method in ("GET", "POST"):
                connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=10)
                connection.request(method, uri, "MERCHANT_SESSIONS_METRICS=1" if method == "POST" else None,
                                   headers=HOSTILE_HEADERS)
                response = connection.getresponse()
                body = response.read()
                connection.close()
                assert response.status in (400, 404, 405), (uri, method)
                assert b"merchant_sessions_" not in body
        # The location of the metrics is not there unless the operator wants it.
        connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=10)
        connection.request("HEAD", "/metrics", headers=HOSTILE_HEADERS)
        assert connection.getresponse().status == 404
        connection.close()
        nginx.allow_errors = True


@pytest.mark.parametrize("name", ["HTTP_MERCHANT_SESSIONS_METRICS", "merchant_sessions_metrics", "MERCHANT_SESSIONS_METRICS_",
                                  "REDIRECT_MERCHANT_SESSIONS_METRICS"])
def test_parameters_of_other_names(start_pool, name):
    pool = start_pool()
    answer = pool.fcgi.get("/metrics", **{name: "1"})
    assert (answer.status, answer.json["code"]) == (404, 21)


def test_an_empty_parameter_does_not_ask(start_pool):
    assert start_pool().fcgi.get("/metrics", MERCHANT_SESSIONS_METRICS="").json["code"] == 21


def test_other_machines_may_not_ask(start):
    site = start()
    connection = http.client.HTTPConnection("127.0.0.1", site.nginx.port, timeout=10, source_address=("127.0.0.2", 0))
    connection.request("GET", "/metrics")
    assert connection.getresponse().status == 403
    connection.close()
    site.nginx.allow_errors = True


def test_pages_of_other_origins_may_not_read_them(start):
    headers = start().http.get("/metrics").headers
    assert not any(name.lower().startswith("access-control-") for name in headers)


# What is shipped

def test_the_manual_names_every_metric(start):
    page = (ROOT / "fcgi/merchant-sessions.fcgi.8").read_text()
    named = re.findall(r"^\.It Li (.*)$", page.split(".Sh METRICS")[1].split(".Sh ")[0], re.MULTILINE)
    assert {PREFIX + name for line in named for name in line.split(" , ")} == set(scrape(start()).types)


def test_the_dashboard_names_metrics_that_exist(start):
    samples = scrape(start())
    there = {PREFIX + name.split("{")[0] for name in samples}
    queries = dashboard_queries()
    assert len(queries) >= 10
    named = set().union(*map(names_in, queries))
    assert named <= there
    # And every metric is shown.
    shown = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in named}
    assert shown == set(samples.types)
