# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read from the request, and what is refused."""

import pytest

from client import assert_error, assert_order
from merchant import MARKER, new_session, new_url

URL = f"https://shop.example/{MARKER}"


def ask(site, query, session=f"{MARKER}-session", instance="shop"):
    return site.fcgi.get(f"/instances/{instance}/sessions/{session}?{query}")


def url_of(value):
    return f"fulfillment_url={value}"


# fulfillment_url

@pytest.mark.parametrize("query", ["", "timeout_ms=5000", "fulfillment_ur=x:y", "FULFILLMENT_URL=x:y", "&&", "=x:y",
                                   "url=" + URL])
def test_url_missing(site, query):
    assert_error(ask(site, query), 400, 25, "fulfillment_url")


def test_url_missing_without_query(site):
    assert_error(site.http.get(f"/sessions/{MARKER}"), 400, 25, "fulfillment_url")


MALFORMED_URLS = {
    "empty": "", "relative": "/articles/1", "word": "shop", "no scheme": "//shop.example/", "colon": ":", "no name": "://x",
    "scheme alone": "https:", "scheme of a digit": "1a:b", "scheme of a dash": "-a:b", "scheme with underscore": "a_b:c",
    "scheme not ASCII": "%C3%A9:x", "space": "https://shop.example/a%20b", "plus for space": "https://shop.example/a+b",
    "leading space": "%20" + URL, "line feed": URL + "%0A", "tab": URL + "%09", "delete": URL + "%7F", "NUL": URL + "%00",
    "NUL within": "https://a%00b", "cut escape": URL + "%4", "lone percent": URL + "%", "bad escape": URL + "%zz",
    "signed escape": URL + "%+1", "Latin-1": URL + "%E9", "overlong": URL + "%C0%AF", "surrogate": URL + "%ED%A0%80",
    "beyond Unicode": URL + "%F4%90%80%80", "cut UTF-8": URL + "%E2%82", "raw Latin-1": None,
}


@pytest.mark.parametrize("name", MALFORMED_URLS)
def test_url_malformed(site, name):
    if name == "raw Latin-1":
        answer = site.fcgi.send({"REQUEST_METHOD": "GET", "REQUEST_URI": f"/sessions/{MARKER}",
                                 "QUERY_STRING": url_of(URL).encode() + b"\xe9"})
    else:
        answer = ask(site, url_of(MALFORMED_URLS[name]))
    assert_error(answer, 400, 26, "fulfillment_url")


def test_url_twice(site):
    for second in (URL, "", "x:y"):
        assert_error(ask(site, f"{url_of(URL)}&{url_of(second)}"), 400, 26, "fulfillment_url")


@pytest.mark.parametrize("url", ["a:b", "a1%2B-.:x", "mailto:s3cr3t@shop.example", "taler://s3cr3t", "x:%3F", "x:%25zz",
                                 "x:%F4%8F%BF%BF"])
def test_url_of_any_scheme(site, url):
    assert_error(ask(site, url_of(url)), 404, 2038)


def test_malformed_through_nginx(site):
    answer = site.http.get(f"/sessions/{MARKER}?{url_of('%zz')}")
    assert_error(answer, 400, 26, "fulfillment_url")


def test_escaped_name(site, merchant):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    assert_order(ask(site, f"fulfillment%5Furl={url}", session), 200, order)


def test_plus_is_a_blank_in_the_query_only(site, merchant):
    session = new_session()
    order = merchant.contract(session, f"{URL}/a+b", paid=True)
    assert_order(ask(site, url_of(f"{URL}/a%2Bb"), session), 200, order)
    assert_order(ask(site, url_of(f"{URL}/a%2bb"), session), 200, order)
    assert_error(ask(site, url_of(f"{URL}/a+b"), session), 400, 26, "fulfillment_url")


# timeout_ms

MALFORMED_TIMEOUTS = ["", "-1", "%2B1", "+1", "%201", "1+", "1%20", "1.5", "1.", "abc", "1a", "0x10", "1e3", "1,000", "%00",
                      "5%00", "%zz", "%EF%BC%91", "-0", "%D9%A1", "null"]


@pytest.mark.parametrize("value", MALFORMED_TIMEOUTS)
def test_timeout_malformed(site, value):
    assert_error(ask(site, f"{url_of(URL)}&timeout_ms={value}"), 400, 26, "timeout_ms")


def test_timeout_without_value(site):
    assert_error(ask(site, f"timeout_ms&{url_of(URL)}"), 400, 26, "timeout_ms")


def test_timeout_twice(site):
    assert_error(ask(site, f"{url_of(URL)}&timeout_ms=1&timeout_ms=1"), 400, 26, "timeout_ms")


@pytest.mark.parametrize("value", ["0", "00", "0" * 100, "1", "0001", "%30"])
def test_timeout_well_formed(site, value):
    answer = ask(site, f"{url_of(URL)}&timeout_ms={value}")
    assert_error(answer, 404, 2038)
    assert answer.seconds < 1


# The path

MALFORMED = {"NUL": "a%00b", "NUL alone": "%00", "bad escape": "%zz", "cut escape": "a%2", "lone percent": "%",
             "Latin-1": "caf%E9", "overlong": "%C0%80", "surrogate": "%ED%B0%80", "cut UTF-8": "a%F0%9F%9B"}


@pytest.mark.parametrize("name", MALFORMED)
def test_session_malformed(site, name):
    assert_error(ask(site, url_of(URL), session=MALFORMED[name]), 400, 26, "session_id")


@pytest.mark.parametrize("name", MALFORMED)
def test_instance_malformed(site, name):
    assert_error(ask(site, url_of(URL), instance=MALFORMED[name]), 400, 26, "instance")


@pytest.mark.parametrize("length", [32_800, 65_000])
def test_long_session_without_request_uri(site, length):
    """The largest that fits into the parameters of a request."""
    answer = site.fcgi.send({"REQUEST_METHOD": "GET", "QUERY_STRING": url_of(URL),
                             "SCRIPT_NAME": "", "PATH_INFO": f"/instances/shop/sessions/{'s' * length}"})
    assert_error(answer, 404, 2038)


# What else may stand in a query

@pytest.mark.parametrize("other", ["x=%zz", "x=%00", "x=%E9", "x", "=", "", "%zz=1", "%00=1", "timeout=abc", "session_id=",
                                   "instance=other", "Timeout_ms=x"])
def test_unknown_parameters_are_ignored(site, merchant, other):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    assert_order(ask(site, f"{other}&{url_of(url)}&{other}", session), 200, order)


def test_many_parameters(site, merchant):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    assert_order(ask(site, "&".join(f"p{i}={i}" for i in range(1000)) + "&" + url_of(url), session), 200, order)


@pytest.mark.parametrize("variables", [{}, {"REQUEST_METHOD": "GET"}, {"REQUEST_METHOD": ""},
                                       {"REQUEST_URI": "/sessions/x"}, {"": ""}, {"REQUEST_METHOD": "GET", "REQUEST_URI": ""},
                                       {"REQUEST_METHOD": "GET", "REQUEST_URI": "*"}],
                         ids=repr)
def test_poor_requests_are_answered(site, variables):
    answer = site.fcgi.send(variables)
    assert answer.status in (400, 404, 405)


def test_absolute_request_uri(site, merchant):
    """HTTP allows a client to send the whole URL; nginx hands it on as it came."""
    session, url = new_session(), new_url()
    order = merchant.contract(session, url, paid=True)
    uri = f"http://shop.example/instances/shop/sessions/{session}?{url_of(url)}"
    assert_order(site.fcgi.get(uri), 200, order)
