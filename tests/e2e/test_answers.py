# SPDX-License-Identifier: GPL-3.0-or-later
"""Every status with its exact body and headers, and which of several orders is meant."""

import json

import pytest

from client import assert_error, assert_order, target
from merchant import MARKER, new_session, new_url

JSON_HEADERS = {
    "Content-Type": "application/json",
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "*",
    "Cache-Control": "no-store",
}


def assert_headers(answer, expected):
    """The pool sends these headers and a correct Content-Length, and no others."""
    headers = dict(answer.headers)
    length = headers.pop("Content-Length", None)
    assert length in (None, str(len(answer.body)))
    assert headers == expected


# The four answers of a lookup

def test_paid(site, merchant):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    assert_order(site.http.ask(session, url), 200, order)


def test_claimed(site, merchant):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    assert_order(site.http.ask(session, url), 202, order)


def test_offered(site, merchant):
    session, url = new_session(), new_url()
    order = merchant.offer(session, url)
    assert_order(site.http.ask(session, url), 202, order)


def test_unknown_session(site):
    assert_error(site.http.ask(new_session(), new_url()), 404, 2038)


def test_session_and_url_must_both_match(site, merchant):
    session, url = new_session(), new_url()
    merchant.contract(session, url, paid=True)
    for other_session, other_url in [(session, new_url()), (new_session(), url), (url, session.replace("-", ":")),
                                     (session.upper(), url), (session + " ", url), (session, url + "/")]:
        assert_error(site.http.ask(other_session, other_url), 404, 2038)


def test_an_order_of_another_instance_is_not_found(site, merchant):
    session, url = new_session(), new_url()
    merchant.contract(session, url, instance="shop", paid=True)
    assert_error(site.http.ask(session, url, instance="admin"), 404, 2038)


def test_an_order_without_url_is_not_found(site, merchant):
    session = new_session()
    merchant.contract(session, None, paid=True)
    assert_error(site.http.ask(session, new_url()), 404, 2038)


def test_life_of_an_order(site, merchant):
    session, url = new_session(), new_url()
    assert_error(site.http.ask(session, url), 404, 2038)
    order = merchant.offer(session, url)
    assert_order(site.http.ask(session, url), 202, order)
    merchant.claim(order)
    assert_order(site.http.ask(session, url), 202, order)
    merchant.pay(order)
    assert_order(site.http.ask(session, url), 200, order)


# Headers

@pytest.mark.parametrize("state", ["paid", "claimed", "unknown", "malformed", "no endpoint"])
def test_headers_of_json(site, merchant, state):
    session, url = new_session(), new_url()
    if state in ("paid", "claimed"):
        merchant.contract(session, url, paid=state == "paid")
    uri = {"malformed": target(session, ""), "no endpoint": "/orders"}.get(state, target(session, url, "shop"))
    assert_headers(site.fcgi.get(uri), JSON_HEADERS)


def test_headers_arrive_through_nginx(site):
    answer = site.http.ask(new_session(), new_url())
    assert JSON_HEADERS.items() <= answer.headers.items()


def test_options(site):
    answer = site.fcgi.get(target(new_session(), new_url()), method="OPTIONS")
    assert (answer.status, answer.body) == (204, b"")
    wanted = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Headers": "*",
              "Access-Control-Allow-Methods": "*"}
    assert wanted.items() <= answer.headers.items()


def test_options_through_nginx(site):
    answer = site.http.get(target(new_session(), new_url()), method="OPTIONS")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["Access-Control-Allow-Methods"] == "*"


def test_head_has_the_headers_of_get_and_no_body(site, merchant):
    session, url = new_session(), new_url()
    merchant.contract(session, url, paid=True)
    uri = target(session, url, "shop")
    head, get = site.fcgi.get(uri, method="HEAD"), site.fcgi.get(uri)
    assert (head.status, head.body) == (200, b"")
    assert {name: head.headers[name] for name in JSON_HEADERS} == JSON_HEADERS
    assert head.headers.get("Content-Length", str(len(get.body))) == str(len(get.body))


def test_head_through_nginx(site):
    answer = site.http.get(target(new_session(), new_url(), "shop"), method="HEAD")
    assert (answer.status, answer.body) == (404, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "get", "BREW"])
def test_other_methods(site, method):
    answer = site.fcgi.get(target(new_session(), new_url()), method=method)
    assert_error(answer, 405, 20)
    assert_headers(answer, {**JSON_HEADERS, "Allow": "GET, HEAD, OPTIONS"})


def test_post_of_a_mebibyte(site):
    uri, body = target(new_session(), new_url(), "shop"), b"x" * 2**20
    for client in (site.http, site.fcgi):
        answer = client.get(uri, method="POST", body=body)
        assert_error(answer, 405, 20)
        assert answer.headers["Allow"] == "GET, HEAD, OPTIONS"


def test_get_with_a_body(site, merchant):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    assert_order(site.fcgi.ask(session, url, body=b"x" * 300_000), 200, order)


# Instances and mount points

@pytest.mark.parametrize("instance", ["unknown", "no.such-shop@example", "s", "shop2", "SHOP", "shop%20", "sho%70s"])
def test_unknown_instance(site, instance):
    answer = site.http.get(target(new_session(), new_url(), instance, timeout_ms=5000))
    assert_error(answer, 404, 2000)
    assert answer.seconds < 1


def test_without_instance_it_is_admin(site, merchant):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, instance="admin", paid=True)
    assert_order(site.http.ask(session, url, instance=None), 200, order)
    assert_order(site.http.ask(session, url, instance="admin"), 200, order)


def test_instance_may_be_escaped(site, merchant):
    merchant.instance("bob@home.example")
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, instance="bob@home.example", paid=True)
    assert_order(site.http.ask(session, url, instance="bob%40home%2eexample"), 200, order)


@pytest.mark.parametrize("mount", ["/taler-merchant", "/merchant-backend/v1", "/sessions", "/a%2Fb", "//", "/instances",
                                   "/sessions/of"])
def test_mount_points(site, merchant, mount):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    uri = mount + target(session, url, "shop")
    assert_order(site.http.get(uri), 200, order)
    assert_order(site.fcgi.get(uri), 200, order)


def test_instance_and_session_named_like_the_path(site, merchant):
    url = new_url()
    merchant.instance("sessions")
    merchant.instance("instances")
    for instance in ("sessions", "instances"):
        for session in ("sessions", "instances"):
            order = merchant.contract(session, url, instance=instance, paid=True)
            assert_order(site.http.ask(session, url, instance=instance), 200, order)


def test_one_trailing_slash(site, merchant):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    uri = target(session, url, "shop").replace("?", "/?")
    assert_order(site.http.get(uri), 200, order)


@pytest.mark.parametrize("path", ["/", "", "/sessions", "/sessions/", "/instances/shop/sessions", "/sessions//",
                                  "/instances/shop/sessions/", "/orders/1", "/instances/shop", "/sessions/a/b",
                                  "/xsessions/a", "/session/a", "/Sessions/a", "/sessions%2Fa"])
def test_other_endpoints(site, path):
    answer = site.fcgi.get(f"{path}?fulfillment_url={new_url()}")
    assert_error(answer, 404, 21)


def test_path_info_where_there_is_no_request_uri(site, merchant):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    path, _, query = target(session, url, "shop").partition("?")
    variables = {"REQUEST_METHOD": "GET", "QUERY_STRING": query}
    assert_order(site.fcgi.send({**variables, "SCRIPT_NAME": "/mount", "PATH_INFO": path}), 200, order)
    assert_order(site.fcgi.send({**variables, "SCRIPT_NAME": path}), 200, order)
    assert_order(site.fcgi.send({**variables, "PATH_INFO": path}), 200, order)


def test_request_uri_goes_before_path_info(site, merchant):
    session, url = new_session() + "/a", new_url()
    order = merchant.contract(session, url, paid=True)
    uri = target(session, url, "shop")
    answer = site.fcgi.get(uri, SCRIPT_NAME="/sessions", PATH_INFO="/other")
    assert_order(answer, 200, order)


# Session ids, URLs and order ids

SESSIONS = {
    "slash": "/a/b", "many slashes": "///", "blank": "a b", "plus": "a+b", "percent": "a%2Fb", "quotes": "a'b\"c\\d",
    "UTF-8": "Größe-東京-🛒", "braces": "{a,b}", "NULL": "NULL", "null": "{NULL}", "dots": "..", "query": "a?b&c=d#e",
    "control": "a\tb\nc\x7f", "long": "x" * 4000, "sql": "'; DROP TABLE merchant_orders; --",
}


@pytest.mark.parametrize("name", SESSIONS)
def test_session_ids(site, merchant, name):
    session, url = MARKER + SESSIONS[name], new_url()
    order = merchant.contract(session, url, paid=True)
    assert_order(site.http.ask(session, url), 200, order)
    assert_order(site.fcgi.ask(session, url), 200, order)


def test_plus_in_the_path_is_no_blank(site, merchant):
    url = new_url()
    blank, plus = new_session(), new_session()
    merchant.contract(blank + " x", url, paid=True)
    order = merchant.contract(plus + "+x", url, paid=True)
    assert_order(site.http.get(f"/instances/shop/sessions/{plus}+x?fulfillment_url={url}"), 200, order)
    assert_error(site.http.get(f"/instances/shop/sessions/{blank}+x?fulfillment_url={url}"), 404, 2038)


URLS = [
    "https://shop.example/s3cr3t?a=1&b=2", "https://shop.example/s3cr3t+plus", "https://shop.example/s3cr3t%2Bplus",
    "https://shop.example/s3cr3t#fragment", "https://büro.example/s3cr3t/Straße/東京", "taler://fulfillment-success/s3cr3t",
    "urn:s3cr3t", "s3cr3t+v1.0-x:y", "https://shop.example/s3cr3t/" + "y" * 1500, "https://shop.example/s3cr3t/'\"\\{}",
    "https://shop.example/s3cr3t%", "HTTPS://shop.example/s3cr3t=;,",
]


@pytest.mark.parametrize("url", URLS, ids=lambda url: url[:40])
def test_fulfillment_urls(site, merchant, url):
    session = new_session()
    order = merchant.contract(session, url, paid=True)
    assert_order(site.http.ask(session, url), 200, order)
    assert_order(site.fcgi.ask(session, url), 200, order)


def test_order_id_is_escaped_for_json(site, merchant):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, order_id=MARKER + "\"\\/\t\x01é🛒", paid=True)
    answer = site.http.ask(session, url)
    assert (answer.status, json.loads(answer.body)) == (200, {"order_id": order})


def test_the_empty_session_matches_nothing(site, merchant):
    url = new_url()
    merchant.contract("", url, paid=True)
    merchant.offer("", url)
    for path in ("/sessions/", "/sessions//", "/instances/shop/sessions/", "/instances/shop/sessions//"):
        assert_error(site.fcgi.get(f"{path}?fulfillment_url={url}"), 404, 21)


# Several orders of one session and URL

def test_paid_wins_over_newer_unpaid(site, merchant):
    session, url = new_session(), new_url()
    paid = merchant.contract(session, url, paid=True, age=100)
    merchant.contract(session, url, age=50)
    merchant.offer(session, url, age=10)
    assert_order(site.http.ask(session, url), 200, paid)


def test_newest_paid(site, merchant):
    session, url = new_session(), new_url()
    newest = merchant.contract(session, url, paid=True, age=10)
    merchant.contract(session, url, paid=True, age=100)
    merchant.contract(session, url, paid=True, age=50)
    assert_order(site.http.ask(session, url), 200, newest)


@pytest.mark.parametrize("newest", ["claimed", "offered"])
def test_newest_unpaid(site, merchant, newest):
    session, url = new_session(), new_url()
    claimed = merchant.contract(session, url, age=10 if newest == "claimed" else 50)
    offered = merchant.offer(session, url, age=10 if newest == "offered" else 50)
    merchant.contract(session, url, age=100)
    merchant.offer(session, url, age=100)
    assert_order(site.http.ask(session, url), 202, {"claimed": claimed, "offered": offered}[newest])


def test_of_the_same_moment_the_later_serial(site, merchant):
    session, url = new_session(), new_url()
    merchant.contract(session, url, paid=True)
    later = merchant.contract(session, url, paid=True)
    merchant.sql(f"UPDATE merchant_contract_terms SET creation_time = 5 WHERE session_id = '{session}'")
    assert_order(site.http.ask(session, url), 200, later)


def test_a_refunded_order_was_paid(site, merchant):
    """Upstream keeps `paid` with a refund, and writes the refund elsewhere."""
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    merchant.sql(f"""CREATE TABLE IF NOT EXISTS merchant_refunds (order_serial bigint, reason text);
                     INSERT INTO merchant_refunds SELECT order_serial, 'broken' FROM merchant_contract_terms
                      WHERE order_id = '{order}'""")
    assert_order(site.http.ask(session, url), 200, order)


@pytest.mark.parametrize("make", ["contract", "offer"])
def test_an_expired_unpaid_order_still_exists(site, merchant, make):
    session, url = new_session(), new_url()
    order = getattr(merchant, make)(session, url, age=100_000, expires_in=-3600)
    assert_order(site.http.ask(session, url), 202, order)


def test_the_example_shop(site):
    article = "https://shop.example/articles/"
    assert_order(site.http.ask("session-of-ada", article + "1"), 202, "offered")
    assert_order(site.http.ask("session-of-ada", article + "2"), 202, "claimed")
    assert_order(site.http.ask("session-of-ada", article + "3"), 200, "paid")
    assert_order(site.http.ask("session-of-bob", "taler://fulfillment-success/thanks", instance=None), 202, "donation")
