# SPDX-License-Identifier: GPL-3.0-or-later
"""conf/demo.html in Chromium: the page on one origin, the merchant on another."""

import contextlib
import re
import time
import urllib.parse

import pytest

from browser import ENTER, TAB, Browser, is_installed
from checked import CheckedNginx, CheckedPool
from merchant import new_url
from processes import wait_until
from servers import ROOT, Nginx, location, upstream

pytestmark = pytest.mark.skipif(not is_installed(), reason="chromium and chromium-driver are not installed")

# More than the page's own pauses in these tests, and less than the 30 s for which it waits for a payment.
SLACK = 8
STATES = ("waiting", "unknown", "ordered", "paid", "error")
# The contrast of the texts that are shown, and of the smallest of them what it is.
CONTRAST = """
    const channel = (value) => value <= 10.31475 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4;
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => numbers(colour).slice(0, 3).reduce(
        (sum, value, i) => sum + [0.2126, 0.7152, 0.0722][i] * channel(value), 0);
    const behind = (node) => {
        const colour = getComputedStyle(node).backgroundColor;
        return numbers(colour)[3] === 0 ? behind(node.parentElement) : colour;
    };
    const shown = [...document.querySelectorAll('h1, h2, p, dt, dd, figcaption, button, summary, header')].filter(
        (node) => node.checkVisibility() && !node.closest('[aria-hidden]'));
    return shown.map((node) => {
        const pair = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => a - b);
        return [(pair[1] + 0.05) / (pair[0] + 0.05), node.textContent];
    }).sort((a, b) => a[0] - b[0])[0];
"""


class Shop(Nginx):
    """A page's server on an origin of its own."""

    def __init__(self):
        super().__init__(server=f"root {ROOT}/conf;")

    def page(self, merchant, url):
        query = urllib.parse.urlencode({"merchant": merchant, "fulfillment_url": url})
        return f"http://127.0.0.1:{self.port}/demo.html?{query}"


class Counter(CheckedNginx):
    """The merchant's nginx, with a log of what is asked of it."""

    def __init__(self, pool):
        super().__init__(http=upstream(pool.socket) + "log_format asked '$status $request_method $request_uri';",
                         server=location().replace("access_log off;", "access_log asked asked;"))
        self.asked = self.directory / "asked"

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/instances/shop"

    def requests(self):
        """The requests that have ended."""
        return self.asked.read_text().splitlines() if self.asked.exists() else []


@pytest.fixture(scope="module")
def shop():
    with Shop() as server:
        yield server


@pytest.fixture(scope="module")
def counter(program, database):
    with CheckedPool(program, "--workers", "1", database=database) as pool, Counter(pool) as nginx:
        yield nginx


@pytest.fixture
def browser():
    with Browser() as opened:
        yield opened


def wait_for_closed(counter, session):
    """Wait until the page has given a request up: nginx logs it with status 499."""
    wait_until(lambda: [line for line in counter.requests() if line.startswith("499 ") and session in line], SLACK,
               "a closed request")


@contextlib.contextmanager
def no_errors(browser, allowed="status of 404"):
    """Nothing in the console but what Chromium itself says of a request that was answered so, or not at all."""
    yield
    own = re.compile(rf"\S*/sessions/\S* - Failed to load resource: .*{allowed}")
    assert [line for line in browser.errors() if not own.match(line)] == []


def wait_for(browser, state, seconds=SLACK):
    assert state in STATES
    browser.wait(f"return document.body?.dataset.state === '{state}'", seconds)


def text(browser, name):
    return browser.run("return document.getElementById(arguments[0]).textContent", name)


def open_page(browser, shop, merchant_url):
    """Return session and fulfillment URL."""
    url = new_url()
    browser.go(shop.page(merchant_url, url))
    wait_for(browser, "unknown")
    return text(browser, "session"), url


def test_the_page_follows_the_order(browser, shop, counter, merchant):
    with no_errors(browser):
        session, url = open_page(browser, shop, counter.url)
        assert len(session) == 32
        assert not browser.run("return document.getElementById('scan').hidden")
        order = merchant.offer(session, url)
        wait_for(browser, "ordered")
        assert text(browser, "order") == order
        merchant.claim(order)
        merchant.pay(order)
        # It waits for thirty seconds.
        wait_for(browser, "paid")
        assert text(browser, "order") == order
        assert browser.run("return document.getElementById('rest').checkVisibility()")
        asked = len(counter.requests())
        time.sleep(3)
        assert len(counter.requests()) == asked
        # Nor does the browser ask beforehand whether it may.
        assert not [line for line in counter.requests() if " GET " not in line]


def test_a_screen_reader_is_told(browser, shop, counter, merchant):
    session, url = open_page(browser, shop, counter.url)
    assert "status" in [role for role, _ in browser.roles()]
    live = "return document.querySelector('[role=status]').textContent"
    assert "Waiting for your wallet" in browser.run(live)
    # Answers that say the same change nothing.
    browser.run("""window.changes = 0;
                   new MutationObserver((list) => window.changes += list.length).observe(
                       document.querySelector('[role=status]'), {subtree: true, childList: true, characterData: true})""")
    asked = len(counter.requests())
    browser.wait("return performance.getEntriesByType('resource').length > 3", SLACK)
    assert len(counter.requests()) > asked
    assert browser.run("return window.changes") == 0
    merchant.contract(session, url, paid=True)
    wait_for(browser, "paid")
    assert "Paid" in browser.run(live)


def test_another_session_each_time_but_the_same_for_a_closed_tab(browser, shop, counter):
    session, url = open_page(browser, shop, counter.url)
    browser.open_another_tab()
    browser.go(shop.page(counter.url, url))
    wait_for(browser, "unknown")
    assert text(browser, "session") == session
    other, _ = open_page(browser, shop, counter.url)
    assert other != session


def test_by_keyboard(browser, shop, counter):
    session, _ = open_page(browser, shop, counter.url)
    browser.press(TAB)
    assert browser.run("return document.activeElement.textContent") == "Start again"
    assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press(ENTER)
    browser.wait(f"return document.getElementById('session').textContent !== '{session}'")
    wait_for(browser, "unknown")
    browser.press(TAB, ENTER)
    assert browser.run("return document.getElementById('listing').checkVisibility()")
    assert "async function watchSession" in text(browser, "listing")
    browser.press(TAB)
    assert browser.run("return document.activeElement.id") == "listing"


def test_early_answers_are_no_reason_to_hurry(browser, program, database, shop, merchant):
    """The merchant answers every request at once."""
    with CheckedPool(program, "--workers", "1", "--max-waiting", "0", database=database) as pool, Counter(pool) as nginx:
        session, url = open_page(browser, shop, nginx.url)
        merchant.contract(session, url)
        wait_for(browser, "ordered")
        asked = len(nginx.requests())
        time.sleep(6)
        assert 1 <= len(nginx.requests()) - asked <= 8


def test_an_outage(browser, shop, program, database, merchant):
    with CheckedPool(program, "--workers", "1", database=database) as pool, Counter(pool) as nginx:
        with no_errors(browser, "(status of 404|net::ERR_)"):
            session, url = open_page(browser, shop, nginx.url)
            nginx.stop()
            wait_for(browser, "error")
            assert "no connection" in text(browser, "text")
            time.sleep(3)
            failed = browser.run("return performance.getEntriesByType('resource').length")
            assert failed < 12
            merchant.contract(session, url)
            nginx.start()
            wait_for(browser, "ordered", 2 * SLACK)


def test_the_pool_is_restarted(browser, shop, program, database, merchant):
    """During the outage nginx answers 502, which a page on another origin cannot read."""
    with CheckedPool(program, "--workers", "1", database=database) as pool, Counter(pool) as nginx:
        nginx.allow_errors = True
        session, url = open_page(browser, shop, nginx.url)
        assert pool.stop() == 0
        wait_for(browser, "error")
        order = merchant.contract(session, url)
        merchant.pay(order)
        pool.start()
        wait_for(browser, "paid", 2 * SLACK)


def test_the_database_is_away(browser, shop, program, postgres):
    """Its answer 500 is the program's own, and readable from another origin."""
    database = postgres.conninfo("away")
    with CheckedPool(program, "--workers", "1", database=database) as pool, Counter(pool) as nginx:
        pool.expect("database: ")
        browser.go(shop.page(nginx.url, new_url()))
        wait_for(browser, "error")
        assert "500" in text(browser, "text")


def test_no_such_instance(browser, shop, counter):
    browser.go(shop.page(counter.url.replace("/shop", "/nobody"), new_url()))
    wait_for(browser, "error")
    assert "no such merchant instance" in text(browser, "text")


def test_a_hidden_page_asks_nothing(browser, shop, counter, merchant):
    session, url = open_page(browser, shop, counter.url)
    order = merchant.contract(session, url)
    wait_for(browser, "ordered")
    browser.hide()
    browser.wait("return document.hidden")
    wait_for_closed(counter, session)
    asked = len(counter.requests())
    merchant.pay(order)
    time.sleep(3)
    assert len(counter.requests()) == asked
    assert browser.run("return document.body.dataset.state") == "ordered"
    browser.show()
    wait_for(browser, "paid")


def test_the_computer_sleeps(browser, shop, counter, merchant):
    """After a sleep the page finds that its clock has jumped. The request that began before may never be answered."""
    session, url = open_page(browser, shop, counter.url)
    merchant.contract(session, url)
    wait_for(browser, "ordered")
    browser.run("const now = Date.now; Date.now = () => now() + 20000")
    wait_for_closed(counter, session)
    browser.wait("return performance.getEntriesByType('resource').at(-1).name.endsWith('timeout_ms=0')", SLACK)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_how_it_looks(browser, shop, counter, tmp_path, width, scheme):
    browser.look_like(width, scheme)
    open_page(browser, shop, counter.url)
    browser.run("watch.abort()")
    for state in STATES:
        browser.run("show(arguments[0])", {
            "state": state, "orderId": "2026.328-00QMDJ2QGTTGC" if state in ("ordered", "paid") else None,
            "reason": "no connection" if state == "error" else None})
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth"), state
        contrast, of = browser.run(CONTRAST)
        assert contrast >= 4.5, (state, of)
        browser.screenshot(tmp_path / f"{state}.png")
        assert (tmp_path / f"{state}.png").stat().st_size > 10000


def test_no_motion_where_it_is_not_wanted(browser, shop, counter):
    animations = "return document.getAnimations().length"
    open_page(browser, shop, counter.url)
    assert browser.run(animations) > 0
    browser.look_like(1280, motion="reduce")
    assert browser.run(animations) == 0

