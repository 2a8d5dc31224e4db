# SPDX-License-Identifier: GPL-3.0-or-later
"""Private servers for the tests and the bench: PostgreSQL, nginx and the pool.

Each is a context manager with a temporary directory of its own, and is gone
with everything it made when the block ends, or the process does:

    with Postgres() as postgres:
        shop = make_shop(postgres, "shop")
        with Pool(program, "--workers", "1", database=shop) as pool, \\
             Nginx(http=upstream(pool.socket), server=location()) as nginx:
            ... requests to 127.0.0.1:nginx.port ...
            assert pool.stop() == 0
"""

import contextlib
import glob
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile

from processes import account_exists, children, connects, free_port, group, kill, start, wait_until

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROLE = "merchant-sessions"
# A line of the pool's log; the group is its level.
LOG_LINE = re.compile(r"merchant-sessions\[\d+\] (error|warning|info|debug): \S.*")


# Tests run as root, mostly, and the program does not unless this variable tells it to.
ALLOW_ROOT = "MERCHANT_SESSIONS_ALLOW_ROOT"
os.environ.setdefault(ALLOW_ROOT, "1")


class Server:
    """A process and its temporary directory; `log` is where its standard error goes."""

    def __init__(self, name):
        self.name = name
        self.process = None
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix=f"{name}-"))
        self.directory.chmod(0o755)
        self.log = self.directory / f"{name}.log"

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.running():
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def running(self):
        return self.process is not None and self.process.poll() is None

    def log_lines(self):
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []

    def wait_ready(self, ready):
        def answer():
            if not self.running():
                raise RuntimeError(f"{self.name} ended: " + "\n".join(self.log_lines()))
            return ready()
        wait_until(answer, what=f"{self.name} ready")


class Postgres(Server):
    """A cluster of its own: Unix socket in `directory`, TCP on 127.0.0.1:`port`, trust authentication.

    Autovacuum is off, so statistics are there only when somebody runs ANALYZE.
    `settings` overrides anything of postgresql.conf.
    """

    SUPERUSER = "postgres"
    STOP = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

    def __init__(self, **settings):
        super().__init__("postgres")
        self.bin = pathlib.Path(max(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[-2])))
        self.account = next((name for name in ("postgres", "nobody") if account_exists(name)), None)
        self.port = free_port()
        self.data = self.directory / "data"
        self.settings = {"autovacuum": "off", "fsync": "off", "full_page_writes": "off", "max_connections": 100,
                         **settings}
        if os.geteuid() == 0:
            shutil.chown(self.directory, self.account)
        self._initdb()

    def _initdb(self):
        with open(self.log, "ab") as log:
            init = start([self.bin / "initdb", "-D", self.data, "-U", self.SUPERUSER, "-A", "trust", "-E", "UTF8",
                          "--locale=C.UTF-8", "--no-sync", "--no-instructions"],
                         user=self.account, cwd=self.directory, stdout=log, stderr=log)
        if init.wait() != 0:
            lines = self.log_lines()
            self.__exit__()
            raise RuntimeError("initdb failed: " + "\n".join(lines))

    def __exit__(self, *_):
        self.resume()
        self.stop("immediate")
        super().__exit__()

    def start(self):
        options = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": self.directory,
                   **self.settings}
        command = [self.bin / "postgres", "-D", self.data]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with open(self.log, "ab") as log:
            self.process = start(command, user=self.account, pdeathsig="INT", cwd=self.directory,
                                 stdout=log, stderr=log)
        self.wait_ready(self._accepts)

    def stop(self, mode="fast"):
        if self.running():
            self.process.send_signal(self.STOP[mode])
            self.process.wait(20)

    def restart(self, mode="fast"):
        self.stop(mode)
        self.start()

    def pause(self):
        """Stop answering without closing anything, as a machine that hangs does."""
        self._signal_all(signal.SIGSTOP)

    def resume(self):
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number):
        if self.running():
            for pid in [self.process.pid, *children(self.process.pid)]:
                kill(pid, number)

    def _accepts(self):
        return subprocess.run([self.bin / "pg_isready", "-q", "-h", self.directory, "-p", str(self.port)]).returncode == 0

    def _psql(self, db, user, variables=()):
        command = [self.bin / "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", self.directory,
                   "-p", str(self.port), "-U", user or self.SUPERUSER, "-d", db]
        for name, value in dict(variables).items():
            command += ["-v", f"{name}={value}"]
        return command

    def psql(self, sql, db="postgres", user=None):
        """Run SQL text and return what psql prints, unaligned, without its last newline."""
        return self._run(self._psql(db, user) + ["-f", "-"], sql)

    def psql_file(self, path, db, **variables):
        """Run a script as an operator would, with psql variables."""
        return self._run(self._psql(db, None, variables) + ["-f", path], None)

    @staticmethod
    def _run(command, sql):
        done = subprocess.run(command, input=sql, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return done.stdout.rstrip("\n")

    def end_sessions(self, user=ROLE):
        """End the connections of a role, as an administrator does."""
        self.psql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{user}'")

    def session(self, db, quiet=False):
        """A psql that goes on, for example to hold a transaction open. `quiet` discards its error messages."""
        return Session(self._psql(db, None), quiet)

    def conninfo(self, db, user=ROLE, tcp=False):
        host = "127.0.0.1" if tcp else self.directory
        return f"host={host} port={self.port} dbname={db} user={user}"


class TlsPostgres(Postgres):
    """A cluster that has a certificate for localhost, which its clients get in `certificate`."""

    def __init__(self):
        super().__init__(ssl="on")
        self.certificate, key = self.directory / "crt", self.directory / "key"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
                        "/CN=localhost", "-keyout", key, "-out", self.certificate], check=True, capture_output=True)
        if os.geteuid() == 0:
            shutil.chown(key, self.account)
        self.settings.update(ssl_cert_file=self.certificate, ssl_key_file=key)


class Standby(Postgres):
    """A streaming standby of a cluster. `promote()` makes it a primary."""

    def __init__(self, primary):
        self.primary = primary
        super().__init__(**primary.settings)

    def _initdb(self):
        with open(self.log, "ab") as log:
            backup = start([self.bin / "pg_basebackup", "-D", self.data, "-R", "-X", "stream", "-c", "fast", "--no-sync",
                            "-h", self.primary.directory, "-p", self.primary.port, "-U", self.SUPERUSER],
                           user=self.account, cwd=self.directory, stdout=log, stderr=log)
        if backup.wait() != 0:
            lines = self.log_lines()
            self.__exit__()
            raise RuntimeError("pg_basebackup failed: " + "\n".join(lines))

    def promote(self):
        assert self.psql("SELECT pg_promote()") == "t"


class PgBouncer(Server):
    """PgBouncer before a cluster, on 127.0.0.1:`port`, as one of the cluster's users asks it, without a password.

    All clients of a user share `servers` connections to each database, as they are left: nothing is reset between clients.
    """

    def __init__(self, postgres, mode, servers=1, user=ROLE):
        super().__init__("pgbouncer")
        self.postgres = postgres
        self.port = free_port()
        self.user = user
        users = self.directory / "users"
        users.write_text(f'"{user}" ""\n')
        self.config = self.directory / "pgbouncer.ini"
        self.config.write_text(f"""
            [databases]
            * = host={postgres.directory} port={postgres.port}
            [pgbouncer]
            listen_addr = 127.0.0.1
            listen_port = {self.port}
            unix_socket_dir =
            auth_type = trust
            auth_file = {users}
            pool_mode = {mode}
            default_pool_size = {servers}
            server_reset_query =
            server_login_retry = 0.2
        """)

    def start(self):
        with open(self.log, "ab") as log:
            # It refuses to run as root.
            self.process = start(["/usr/sbin/pgbouncer", self.config], user=self.postgres.account, pdeathsig="INT",
                                 cwd=self.directory, stdout=log, stderr=log)
        self.wait_ready(lambda: connects(("127.0.0.1", self.port)))

    def stop(self):
        if self.running():
            self.process.terminate()  # at once, without waiting for clients
            self.process.wait(10)

    def conninfo(self, db):
        return f"host=127.0.0.1 port={self.port} dbname={db} user={self.user}"

    def session(self, db):
        """A psql that goes on, as another client."""
        return Session(["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", self.conninfo(db)])


class Session:
    """`run(sql)` in one session; leaving the block ends it, and rolls back."""

    def __init__(self, command, quiet=False):
        self.process = start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             stderr=subprocess.DEVNULL if quiet else None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def end(self):
        """Kill psql, whether it answers or not. The server rolls back."""
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.stdout.close()

    def run(self, sql):
        end = "-- end --"
        self.process.stdin.write(f"{sql};\n\\echo {end}\n")
        self.process.stdin.flush()
        lines = []
        while (line := self.process.stdout.readline()) != f"{end}\n":
            if not line:
                raise RuntimeError(f"psql ended: {sql}")
            lines.append(line.rstrip("\n"))
        return "\n".join(lines)


def read_statement(name):
    """A file of sql/ as the program has it, with what its `-- include` lines name."""
    text = (ROOT / "sql" / name).read_text()
    return re.sub(r"^-- include (.*)$", lambda line: read_statement(line[1]), text, flags=re.MULTILINE)


def make_shop(postgres, db):
    """Create the example shop's database and the program's role; return the conninfo for the program."""
    postgres.psql(f'CREATE DATABASE "{db}"')
    postgres.psql_file(ROOT / "conf/example.sql", db)
    postgres.psql_file(ROOT / "sql/role.sql", db)
    return postgres.conninfo(db)


class Nginx(Server):
    """nginx on 127.0.0.1:`port`. `http` goes into http{} (upstreams), `server` into server{} (locations)."""

    def __init__(self, http="", server="", workers=1):
        super().__init__("nginx")
        self.port = free_port()
        self.config = self.directory / "nginx.conf"
        self.config.write_text(self._configuration(http, server, workers))

    def _configuration(self, http, server, workers):
        paths = "\n".join(f"{kind}_temp_path {self.directory}/{kind};"
                          for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        # As root it would turn into another user, who may not open the pool's socket.
        user = "user root root;" if os.geteuid() == 0 else ""
        return f"""
            {user}
            daemon off;
            worker_processes {workers};
            worker_rlimit_nofile 8192;
            pid {self.directory}/nginx.pid;
            error_log {self.log} error;
            events {{ worker_connections 4096; }}
            http {{
                access_log off;
                {paths}
                {http}
                server {{
                    listen 127.0.0.1:{self.port} backlog=2048;
                    {server}
                }}
            }}
        """

    def start(self):
        nginx = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
        with open(self.log, "ab") as log:
            self.process = start([nginx, "-p", self.directory, "-e", self.log, "-c", self.config],
                                 stdout=log, stderr=log)
        self.wait_ready(lambda: connects(("127.0.0.1", self.port)))

    def stop(self):
        if self.running():
            self.process.terminate()
            self.process.wait(10)

    def __exit__(self, *_):
        self.stop()
        super().__exit__()


SOCKET_OF_OPERATORS = "/run/merchant-sessions/merchant-sessions.sock"


def upstream(socket_path, file="conf/nginx-upstream.conf"):
    """The shipped upstream, pointed at a pool of ours."""
    return shipped(file).replace(SOCKET_OF_OPERATORS, str(socket_path))


def location(file="conf/nginx-location.conf"):
    """The shipped location, as it stands."""
    return shipped(file)


def shipped(file):
    """A file of the project."""
    return (ROOT / file).read_text()


class Pool(Server):
    """The program, listening on `socket`, its standard error in `log`.

    `by` is how it gets its socket: "listen" (--listen), "spawn-fcgi", or
    "descriptor" (a listening socket as descriptor 0). `address` replaces the
    Unix socket of "listen" by HOST:PORT. `env` is added to the environment.
    `prefix` are words before the command, for instance those of prlimit.
    """

    def __init__(self, program, *options, database=None, by="listen", address=None, env=None, prefix=()):
        super().__init__("merchant-sessions")
        self.program = pathlib.Path(program).resolve()
        self.options = ["--database", database, *options] if database else list(options)
        self.by = by
        self.address = address
        self.socket = address or self.directory / "pool.sock"
        self.env = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1", **(env or {})}
        self.prefix = prefix

    def start(self):
        with open(self.log, "ab") as log:
            self.process = getattr(self, "_start_by_" + self.by.replace("-", "_"))(log)
        self.wait_ready(lambda: connects(self.connect_to))

    @property
    def connect_to(self):
        """What socket.connect() takes."""
        if not self.address:
            return str(self.socket)
        host, port = self.address.rsplit(":", 1)
        return host.strip("[]"), int(port)

    def _start(self, command, log, **options):
        return start([*self.prefix, *command], env=self.env, cwd=self.directory, start_new_session=True,
                     stdout=log, stderr=log, **options)

    def _start_by_listen(self, log):
        return self._start([self.program, "--listen", self.socket, *self.options], log)

    def _start_by_spawn_fcgi(self, log):
        return self._start(["spawn-fcgi", "-n", "-s", self.socket, "--", self.program, *self.options], log)

    def _start_by_descriptor(self, log):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.socket))
            listener.listen(1024)
            return self._start([self.program, *self.options], log, stdin=listener)

    @property
    def pid(self):
        return self.process.pid

    def workers(self):
        """The pids of the workers; the process itself where it has none, or not yet: once it has answered they are there."""
        return children(self.pid) or [self.pid]

    def send(self, number):
        self.process.send_signal(number)

    def stop(self, number=signal.SIGTERM, within=2):
        """Stop it and return its exit status; no worker may outlive it."""
        self.send(number)
        status = self.process.wait(within)
        left = group(self.pid)
        assert not left, f"processes outlive the pool: {left}"
        return status

    def kill(self):
        """Kill it and its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def descriptors_open(self):
        """The most that any worker has open."""
        counts = [0]
        for pid in children(self.pid):
            with contextlib.suppress(FileNotFoundError):
                counts.append(len(os.listdir(f"/proc/{pid}/fd")))
        return max(counts)

    def __exit__(self, *_):
        if self.process:
            self.kill()
        super().__exit__()
