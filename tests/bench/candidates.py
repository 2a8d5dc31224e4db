# SPDX-License-Identifier: GPL-3.0-or-later
"""What is measured: this program, and what a user would run in its place.

Each is a context manager with `socket`, where the web server finds it, and `process`.
"""

import os
import pathlib

import fastcgi
import shop
from processes import start
from servers import Nginx, Pool, Server

HERE = pathlib.Path(__file__).resolve().parent
STATEMENT = HERE / "lookup-one.sql"

DESCRIPTIONS = {
    "this": "this program, as many workers as processors",
    "limit": "its own road without the database: the answer is made up at once",
    "echo": "the classic libfcgi responder, 4 processes, no database",
    "textbook": "the classic libfcgi responder, 8 processes, each with a connection and a statement for each request",
    "php": "PHP-FPM with pgsql, persistent connections and a prepared statement, 8 children",
    "probe": "the index of the contracts probed by a prepared statement, in batches of this program's mean size, "
             "one client",
    "raw": "pgbench -M prepared with the same statement, 8 clients: the database alone",
}


class Fpm(Server):
    """PHP-FPM with sessions.php."""

    def __init__(self, database):
        super().__init__("php")
        self.socket = self.directory / "pool.sock"
        self.config = self.directory / "php-fpm.conf"
        settings = ["[global]", "daemonize = no", f"error_log = {self.log}",
                    "[bench]", f"listen = {self.socket}", "listen.backlog = 1024", "pm = static", "pm.max_children = 8",
                    f'env[DATABASE] = "{database}"', f'env[STATEMENT] = "{STATEMENT}"']
        # As root it would turn into another user, who may not read a checkout in a home.
        if os.geteuid() == 0:
            settings += ["user = root", "group = root"]
        self.config.write_text("\n".join(settings) + "\n")

    def start(self):
        program = max(pathlib.Path("/usr/sbin").glob("php-fpm*"))
        root = ["-R"] if os.geteuid() == 0 else []
        with open(self.log, "ab") as log:
            self.process = start([program, "-F", "-y", self.config, *root], stdout=log, stderr=log)
        self.wait_ready(self.socket.exists)

    def __exit__(self, *_):
        if self.running():
            self.process.terminate()
            self.process.wait(10)
        super().__exit__()


def program(build, database, *options, **how):
    return Pool(build / "fcgi/merchant-sessions.fcgi", *map(str, options), database=database, **how)


def check_directly(pool):
    """One request without a web server: once it is answered, the workers are there."""
    with fastcgi.Connection(pool.connect_to) as connection:
        connection.send(fastcgi.request(fastcgi.variables(shop.paid(1)[0].path())))
        reply = connection.reply()
    if reply is None or reply.status != 200:
        raise RuntimeError(f"a paid session was answered with {reply}")


def start_candidate(name, build, database):
    bench = build / "tests/bench"
    match name:
        case "this":
            return program(build, database)
        case "limit":
            return Pool(bench / "bench-limit")
        case "echo":
            return Pool(bench / "bench-echo", "--workers", "4")
        case "textbook":
            return Pool(bench / "bench-textbook", "--workers", "8", "--statement", STATEMENT, database=database)
        case "php":
            return Fpm(database)
    raise ValueError(name)


def web_server(socket, keep, workers=2):
    """nginx in front of a candidate, connected as conf/ has it, or anew for each request."""
    return Nginx(
        http=f"upstream pool {{ server unix:{socket}; {'keepalive 64;' if keep else ''} }}",
        server=f"""
            location / {{
                fastcgi_pass pool;
                fastcgi_keep_conn {'on' if keep else 'off'};
                fastcgi_param REQUEST_METHOD $request_method;
                fastcgi_param REQUEST_URI $request_uri;
                fastcgi_param QUERY_STRING $query_string;
                fastcgi_param SCRIPT_FILENAME {HERE}/sessions.php;
                fastcgi_pass_request_headers off;
                fastcgi_pass_request_body off;
                fastcgi_read_timeout 150s;
            }}
        """,
        workers=workers)
