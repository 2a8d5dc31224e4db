# SPDX-License-Identifier: GPL-3.0-or-later
"""Each web server of conf/, configured by that very file: one table of answers for all, and the exceptions of each."""

import contextlib
import dataclasses
import http.client
import pathlib
import re
import shutil
import signal
import tempfile
import threading
import time

import pytest

from checked import CheckedPool
from client import Http, assert_error, assert_order, target
from merchant import MARKER, new_session, new_url
from processes import wait_until
from servers import ROOT, SOCKET_OF_OPERATORS, Nginx, shipped
from webservers import Apache, Caddy, H2o, Lighttpd

PROGRAM_OF_OPERATORS = "/usr/local/libexec"
DATABASE_OF_OPERATORS = "postgres:///taler-merchant"


# The servers. `open(files, place)` starts one with the texts of its files.

def open_nginx(files, place):
    return Nginx(http=files["nginx-upstream.conf"], server=files["nginx-location.conf"])


def open_apache_proxy(files, place):
    return Apache(files["apache-proxy.conf"], ["proxy", "proxy_fcgi", "setenvif"])


def open_apache_fcgid(files, place):
    return Apache(files["apache-fcgid.conf"], ["fcgid", "alias", "setenvif"])


def open_apache_htaccess(files, place):
    (place / ".htaccess").write_text(files["apache-fcgid.htaccess"])
    (place / "sessions.fcgi").write_text(files["apache-fcgid.sh"])
    (place / "sessions.fcgi").chmod(0o755)
    host = f'<Directory "{place}">\nAllowOverride FileInfo Options=ExecCGI\nRequire all granted\n</Directory>'
    return Apache(host, ["fcgid", "rewrite"], document_root=place)


def open_lighttpd(files, place):
    text, = files.values()
    return Lighttpd(text)


def open_caddy(files, place):
    return Caddy(files["caddy.conf"])


def open_h2o(files, place):
    return H2o(files["h2o.conf"])


@dataclasses.dataclass
class Served:
    name: str
    files: list
    open: object
    command: str                # that must be there
    notices: bool               # whether a client that leaves is noticed
    exceptions: dict            # rows that it answers by itself, and how
    timeout: tuple = None       # the longest wait as its file has it, and a copy of a second
    second: tuple = None        # where its file gets a second pool, and what is written there
    spawns: bool = False        # it starts the program by itself
    verbose: tuple = ()         # where its file asks the program for a log of all events
    needs: str = ""             # a file that must be there

    def __str__(self):
        return self.name


NGINX = {"id ..": 404, "NUL in the id": 400, "bad escape in the id": 400, "huge query": 414, "enormous query": 414,
         "large headers": 400}
APACHE = {"id ..": 404, "bad escape in the id": 400, "huge query": 414, "enormous query": 414}
# FcgidMaxRequestLen is 128 KiB. A NUL cannot be in the name of a file, not even where the file is another.
FCGID = {**APACHE, "NUL in the id": 404, "POST of a mebibyte": 500, "large headers": 500}
# It mends the bad escape in the query, so that the URL is another one.
LIGHTTPD = {"id ..": 404, "id control": 400, "malformed id": 400, "NUL in the id": 400, "bad escape in the query": 404,
            "huge query": 431, "enormous query": 431, "other method": 501, "large headers": 431}
CADDY = {"id .": 200, "id ..": 200, "NUL in the id": 400, "bad escape in the id": 400, "enormous query": 502}
# It has no pattern for paths: each instance and base path has a line.
H2O = {"id ..": 404, "NUL in the id": 503, "enormous query": 503, "below a base path": 404, "unknown instance": 404}
FCGID_MODULE = "/usr/lib/apache2/modules/mod_fcgid.so"
QOS_MODULE = "/usr/lib/apache2/modules/mod_qos.so"

SERVED = [
    Served("nginx", ["nginx-upstream.conf", "nginx-location.conf"], open_nginx, "nginx", notices=True,
           exceptions=NGINX,
           timeout=("fastcgi_read_timeout 60s", "fastcgi_read_timeout 1s"),
           second=("# server 192.0.2.1:9000 max_fails", "server unix:{socket} max_fails")),
    Served("apache-proxy", ["apache-proxy.conf"], open_apache_proxy, "apache2", notices=False,
           exceptions=APACHE, timeout=("timeout=60", "timeout=1")),
    Served("apache-fcgid", ["apache-fcgid.conf"], open_apache_fcgid, "apache2", notices=False, spawns=True,
           exceptions=FCGID, timeout=("FcgidIOTimeout 60", "FcgidIOTimeout 1"), needs=FCGID_MODULE),
    Served("apache-htaccess", ["apache-fcgid.htaccess", "apache-fcgid.sh"], open_apache_htaccess, "apache2",
           notices=False, spawns=True, needs=FCGID_MODULE,
           exceptions={**FCGID, "id /": 404, "id //": 404, "id trailing /": 404}),
    Served("lighttpd-socket", ["lighttpd-socket.conf"], open_lighttpd, "lighttpd",
           notices=False, exceptions=LIGHTTPD, timeout=('"read-timeout" => 60', '"read-timeout" => 1')),
    Served("lighttpd-spawn", ["lighttpd-spawn.conf"], open_lighttpd, "lighttpd",
           notices=False, spawns=True, exceptions=LIGHTTPD, timeout=('"read-timeout" => 60', '"read-timeout" => 1'),
           verbose=(('"bin-environment" => (', '"bin-environment" => ( "MERCHANT_SESSIONS_VERBOSE" => "1",'),)),
    Served("caddy", ["caddy.conf"], open_caddy, "caddy", notices=False,
           exceptions=CADDY, timeout=("read_timeout 60s", "read_timeout 1s"),
           second=("merchant-sessions.sock {", "merchant-sessions.sock unix/{socket} {")),
    Served("h2o", ["h2o.conf"], open_h2o, "h2o", notices=False,
           exceptions=H2O, timeout=("fastcgi.timeout.io: 60000", "fastcgi.timeout.io: 1000")),
]


class Place:
    """A directory that every user can read, with the program in it."""

    def __init__(self, program):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="place-"))
        self.path.chmod(0o755)
        self.program = self.path / "bin" / "merchant-sessions.fcgi"
        self.make("bin")
        shutil.copy(program, self.program)

    def make(self, name):
        """A directory in it, which may be there already."""
        directory = self.path / name
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
        return directory


@pytest.fixture(scope="module")
def place(program):
    made = Place(program)
    yield made
    shutil.rmtree(made.path)


class Running:
    """A web server that runs; `pool` is None where it has started the program by itself."""

    def __init__(self, served, server, pool, log):
        self.served = served
        self.server = server
        self.pool = pool
        self.log = log
        self.http = Http(server.port)

    def program_log(self):
        return self.log.read_text()


@contextlib.contextmanager
def running(served, place, database, *edits, pool_options=()):
    """Start a server with its files, and the pool behind it. `edits` are pairs of a text and what replaces it."""
    there = shutil.which(served.command, path="/usr/sbin:/usr/bin") and pathlib.Path(served.needs or "/").exists()
    if not there:
        pytest.skip(f"{served.name} is not installed")
    with contextlib.ExitStack() as stack:
        pool = None
        if not served.spawns:
            # Apache's user is another one than the pool's.
            options = ["--workers", "2", "--socket-mode", "0666", "--verbose", *pool_options]
            pool = stack.enter_context(CheckedPool(place.program, *options, database=database))
        server = stack.enter_context(configured(served, place, database, pool, *edits))
        yield Running(served, server, pool, pool.log if pool else place.path / served.name / "merchant-sessions.log")


def configured(served, place, database, pool, *edits):
    """The server with its files: the paths that its operators are told about are replaced, and the edits made."""
    files = {name: shipped(f"conf/{name}") for name in served.files}
    for old, new in edits:
        assert any(old in text for text in files.values()), old
        files = {name: text.replace(old, new) for name, text in files.items()}
    directory = place.make(served.name)
    paths = {SOCKET_OF_OPERATORS: pool and pool.socket, PROGRAM_OF_OPERATORS: place.program.parent,
             DATABASE_OF_OPERATORS: database, "/run/lighttpd": directory, "/var/log/lighttpd": directory}
    for old, new in paths.items():
        files = {name: text.replace(old, str(new)) for name, text in files.items()}
    return served.open(files, directory)


@pytest.fixture(scope="module", params=SERVED, ids=str)
def site(request, place, database):
    with running(request.param, place, database) as opened:
        yield opened


# The answers that all of them give.

@dataclasses.dataclass
class Row:
    name: str
    path: str                   # {NAME} is an order's session id
    status: int                 # None: no server has to know
    method: str = "GET"
    body: bytes = None

    def __str__(self):
        return self.name


IDS = {
    "/": "a/b", "//": "a//b", "trailing /": "a/", "%": "50%", "%2F": "a%2Fb", "%25": "%25%00", "+": "a+b c",
    "UTF-8": "Größe-東京-🛒", "query": "?&=#;", "dots inside": "a..b", "quotes": "<'\">\\",
    "control": "a\tb\nc\x7f",
    "braces": "{a,b}|^~`", "reserved": ";,:@$!*()", "long": "x" * 4000,
}
# These stand alone: there is nothing before the dots.
WHOLE_IDS = {".": ".", "..": ".."}

SHOP, URL = "/instances/shop/sessions/", "?fulfillment_url={url}"
ROWS = [
    Row("paid", SHOP + "{paid}" + URL, 200),
    Row("paid, no instance", "/sessions/{admin}" + URL, 200),
    Row("unpaid", SHOP + "{unpaid}" + URL, 202),
    Row("unknown session", SHOP + "unknown" + URL, 404),
    Row("unknown session, no instance", "/sessions/unknown" + URL, 404),
    Row("unknown instance", "/instances/nobody/sessions/{paid}" + URL, 404),
    Row("below a base path", "/merchant-backend" + SHOP + "{paid}" + URL, 200),
    Row("trailing slash", SHOP + "{paid}/" + URL, 200),
    Row("no URL", SHOP + "{paid}", 400),
    Row("malformed timeout", SHOP + "{paid}" + URL + "&timeout_ms=-1", 400),
    Row("malformed id", SHOP + "a%FFb" + URL, 400),
    Row("NUL in the id", SHOP + "a%00b" + URL, 400),
    Row("bad escape in the id", SHOP + "a%zzb" + URL, 400),
    Row("bad escape in the query", SHOP + "{paid}?fulfillment_url=a:%zz", 400),
    Row("blank in the query", SHOP + "{paid}?x=a+b&fulfillment_url={url}", 200),
    Row("HEAD", SHOP + "{paid}" + URL, 200, "HEAD"),
    Row("HEAD of an error", SHOP + "{paid}", 400, "HEAD"),
    Row("OPTIONS", SHOP + "{paid}" + URL, 204, "OPTIONS"),
    Row("POST", SHOP + "{paid}" + URL, 405, "POST", b"x=y"),
    Row("POST of a mebibyte", SHOP + "{paid}" + URL, 405, "POST", b"x" * 2**20),
    Row("DELETE", SHOP + "{paid}" + URL, 405, "DELETE"),
    Row("other method", SHOP + "{paid}" + URL, 405, "BREW"),
    Row("long query", SHOP + "{paid}" + URL + "&x=" + "y" * 7000, 200),
    Row("huge query", SHOP + "{paid}" + URL + "&x=" + "y" * 20_000, 200),
    Row("enormous query", SHOP + "{paid}" + URL + "&x=" + "y" * 200_000, None),
    *[Row(f"id {name}", SHOP + "{id " + name + "}" + URL, 200) for name in [*IDS, *WHOLE_IDS]],
]


@pytest.fixture(scope="module")
def sessions(merchant):
    """The orders that the rows name."""
    made = {"url": new_url(), "paid": new_session(), "unpaid": new_session(), "admin": new_session()}
    made |= {f"id {name}": MARKER + text for name, text in IDS.items()}
    made |= {f"id {name}": text for name, text in WHOLE_IDS.items()}
    for name, session in made.items():
        if name != "url":
            instance = "admin" if name == "admin" else "shop"
            merchant.contract(session, made["url"], instance=instance, paid=name != "unpaid")
    return made


@pytest.fixture(scope="module")
def pool_alone(program, database):
    """What the pool answers without a web server."""
    with CheckedPool(program, "--workers", "1", database=database) as pool:
        yield pool.fcgi


def uri(row, sessions):
    encoded = {name: target(text).split("/")[-1].rstrip("?") for name, text in sessions.items()}
    return re.sub(r"\{([^}]+)\}", lambda name: encoded[name[1]], row.path)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_answers(site, pool_alone, sessions, row):
    """Status, body and header fields as the pool has them, byte for byte."""
    answer = site.http.get(uri(row, sessions), row.method, row.body)
    expected = site.served.exceptions.get(row.name, row.status)
    assert answer.status == expected
    if row.name in site.served.exceptions:
        return
    alone = pool_alone.get(uri(row, sessions), row.method, row.body or b"")
    assert (answer.status, answer.body) == (alone.status, alone.body)
    expected, headers = lower(alone.headers), lower(answer.headers)
    # Apache sends chunks instead.
    if "content-length" not in headers:
        expected.pop("content-length", None)
    assert expected.items() <= headers.items()
    assert "status" not in headers


def lower(headers):
    return {name.lower(): text for name, text in headers.items()}


def test_part_of_an_answer_is_not_had(site, sessions):
    connection = http.client.HTTPConnection("127.0.0.1", site.server.port)
    connection.request("GET", uri(ROWS[0], sessions), headers={"Range": "bytes=0-3"})
    assert connection.getresponse().status == 200
    connection.close()


def test_other_paths_are_left_alone(site):
    for path in ("/orders/1", "/", "/config"):
        assert b'"code"' not in site.http.get(path).body


def test_large_headers(site, sessions):
    """Together they are larger than all that the program keeps of a request."""
    connection = http.client.HTTPConnection("127.0.0.1", site.server.port)
    connection.request("GET", uri(ROWS[0], sessions), headers={f"X-{n}": "v" * 4000 for n in range(60)})
    assert connection.getresponse().status == site.served.exceptions.get("large headers", 200)
    connection.close()
    assert site.http.get(uri(ROWS[0], sessions)).status == 200


def test_a_long_poll_that_is_paid(site, merchant):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    waiting = site.http.later(session, url, timeout_ms=15000)
    assert not waiting.done()
    merchant.pay(order)
    assert_order(waiting.result(10), 200, order)


def test_a_long_poll_that_ends(site, merchant):
    session, url = new_session(), new_url()
    order = merchant.contract(session, url)
    answer = site.http.ask(session, url, timeout_ms=800)
    assert_order(answer, 202, order)
    assert answer.seconds >= 0.8


# What a server does with its pools. Each has a copy of its own.

@pytest.mark.parametrize("served", [served for served in SERVED if served.timeout], ids=str)
def test_the_longest_wait(served, place, database):
    """The file allows more than --max-wait and the time for the database. A copy shows that it is this line."""
    line, shortened = served.timeout
    number, = re.findall(r"\d+", line)
    assert int(number) / (1000 if "000" in number else 1) > 50 + 2
    with running(served, place, database, served.timeout) as site:
        answer = site.http.ask(new_session(), new_url(), timeout_ms=12000)
        assert answer.status >= 500
        assert answer.seconds < 10
    assert shortened not in "".join(shipped(f"conf/{name}") for name in served.files)


LEFT = "closed by the peer, while a request was open"


@pytest.mark.parametrize("served", [served for served in SERVED if not served.needs], ids=str)
def test_a_client_that_leaves(served, place, database):
    """As README says: the program notices, or the request waits on."""
    with running(served, place, database, *served.verbose) as site:
        connection = http.client.HTTPConnection("127.0.0.1", site.server.port)
        connection.request("GET", target(new_session(), new_url(), "shop", timeout_ms=2000))
        time.sleep(0.3)
        connection.close()
        if served.notices:
            wait_until(lambda: LEFT in site.program_log(), 1.5, "the client is gone")
        else:
            time.sleep(1.2)
            assert "connected" in site.program_log()
            assert not LEFT in site.program_log()


@pytest.mark.parametrize("served", [served for served in SERVED if not served.spawns], ids=str)
def test_a_pool_that_comes_back_is_asked_soon(served, place, database):
    """lighttpd does so within two seconds, the others at once."""
    with running(served, place, database) as site:
        assert_error(site.http.ask(new_session(), new_url()), 404, 2038)
        site.pool.stop()
        assert site.http.ask(new_session(), new_url()).status >= 500
        site.pool.start()
        wait_until(lambda: site.http.ask(new_session(), new_url()).status == 404, 4, "an answer")


@pytest.mark.parametrize("served", [served for served in SERVED if served.second], ids=str)
def test_pools_that_are_restarted_one_after_the_other(served, place, database):
    """No request fails, and no waiting request is lost."""
    with CheckedPool(place.program, "--workers", "1", "--socket-mode", "0666", database=database) as second:
        old, new = served.second
        with running(served, place, database, (old, new.replace("{socket}", str(second.socket)))) as site:
            waiting = site.http.later(new_session(), new_url(), timeout_ms=15000)
            with asking(site) as statuses:
                for pool in (site.pool, second, site.pool, second):
                    pool.stop()
                    time.sleep(0.3)
                    pool.start()
            assert set(statuses) == {404}
            assert waiting.result(20).status == 404


@pytest.mark.parametrize("served", [served for served in SERVED if not served.spawns], ids=str)
def test_workers_that_are_replaced(served, place, database):
    """SIGHUP: no request fails behind any of them."""
    with running(served, place, database, pool_options=("--workers", "1")) as site, asking(site) as statuses:
        site.pool.send(signal.SIGHUP)
        wait_until(lambda: site.pool.logged("workers replaced"), 10, "the replacement")
    assert set(statuses) == {404}


@contextlib.contextmanager
def asking(site):
    """Three clients ask without a pause while the block runs. The statuses that they got are in the list."""
    statuses, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            statuses.append(site.http.ask(new_session(), new_url()).status)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        wait_until(lambda: len(statuses) > 3, 5, "answers")
        yield statuses
    finally:
        stop.set()
        for asker in askers:
            asker.join()


def limited(*edits):
    """The commented limits of nginx, with smaller numbers."""
    return [("#limit_", "limit_"), *edits]


def assert_waiting_is_limited(site, allowed):
    """A client parks as many as it may, and is refused more. Another is served, and may wait. Then the first may again."""
    other = Http(site.server.port, "127.0.0.2")
    waiting = [site.http.later(new_session(), new_url(), timeout_ms=3000) for _ in range(allowed)]
    wait_until(lambda: site.http.ask(new_session(), new_url()).status == 429, 2, "a refusal")
    answer = other.ask(new_session(), new_url(), timeout_ms=300)
    assert (answer.status, answer.seconds >= 0.3) == (404, True)
    assert site.http.ask(new_session(), new_url()).status == 429
    assert [answer.result(6).status for answer in waiting] == [404] * allowed
    assert site.http.ask(new_session(), new_url()).status == 404


def test_nginx_limits_the_requests_of_a_client_that_wait(place, database):
    with running(SERVED[0], place, database, *limited(("waiting 100;", "waiting 2;"))) as site:
        assert_waiting_is_limited(site, 2)
        assert site.server.log_lines() == []


def test_nginx_limits_the_rate_of_a_client(place, database):
    with running(SERVED[0], place, database, *limited(("rate=50r/s", "rate=1r/s"), ("burst=100", "burst=2"))) as site:
        statuses = [site.http.ask(new_session(), new_url()).status for _ in range(10)]
        assert statuses[:3] == [404] * 3
        assert 429 in statuses[3:]
        assert Http(site.server.port, "127.0.0.2").ask(new_session(), new_url()).status == 404
        assert site.server.log_lines() == []


def open_apache_qos(files, place):
    """The commented limit of Apache, with a smaller number: its last lines belong outside of the virtual host."""
    site, _, main = files["apache-proxy.conf"].partition("# and outside of the virtual host these lines")
    load, main = [re.findall(rf"^#({words}.*)", main, re.M) for words in ("LoadFile", "QS_")]
    assert (len(load), len(main)) == (1, 2)
    module = f"LoadModule qos_module {QOS_MODULE}"
    return Apache(site.replace("#SetEnvIf", "SetEnvIf"), ["proxy", "proxy_fcgi", "setenvif"],
                  main="\n".join([*load, module, *main]).replace("RequestLimit 50", "RequestLimit 2"))


def test_apache_limits_the_requests_of_a_client_that_wait(place, database):
    served = dataclasses.replace(SERVED[1], open=open_apache_qos, needs=QOS_MODULE)
    with running(served, place, database) as site:
        assert_waiting_is_limited(site, 2)


@pytest.mark.parametrize("served", [served for served in SERVED if served.needs], ids=str)
def test_mod_fcgid_fills_no_log(served, place, database):
    """Each process that it starts would say that it has connected, in the log of a host that is not ours."""
    with running(served, place, database) as site:
        waiting = [site.http.later(new_session(), new_url(), timeout_ms=1000) for _ in range(3)]
        assert [answer.result(10).status for answer in waiting] == [404] * 3
        assert [line for line in site.server.log_lines() if "merchant-sessions[" in line] == []


def test_mod_fcgid_notices_no_client_that_leaves(place, database):
    """The only process is busy until the wait is over."""
    served = next(served for served in SERVED if served.name == "apache-fcgid")
    with running(served, place, database, ("PerClass 80", "PerClass 1"), ("MAX_WAIT 20000", "MAX_WAIT 2500")) as site:
        connection = http.client.HTTPConnection("127.0.0.1", site.server.port)
        connection.request("GET", target(new_session(), new_url(), "shop", timeout_ms=20000))
        time.sleep(0.5)
        connection.close()
        answer = site.http.ask(new_session(), new_url())
        assert_error(answer, 404, 2038)
        assert answer.seconds > 1


# README

def test_readme_has_a_row_for_each_file():
    table = (ROOT / "README").read_text().partition("| server | file |")[2].partition("\n\n")[0]
    rows = [line for line in table.splitlines() if "conf/" in line]
    named = {name for row in rows for name in re.findall(r"conf/([\w.-]+\w)", row)}
    assert named == {name for served in SERVED for name in served.files}
    for served in SERVED:
        row, = [row for row in rows if f"conf/{served.files[0]}" in row]
        _, _, _, _, wait, notices, *_ = row.split("|")
        assert notices.strip() == ("yes" if served.notices else "no"), row
        assert any(wait.split(",")[1].strip() in shipped(f"conf/{name}") for name in served.files), row
