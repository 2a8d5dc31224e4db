# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of the database, and of the road to it."""

import contextlib
import os
import pwd
import signal
import subprocess

from frame import DB, DB_TIMEOUT, OTHER, THIRD, Stage, fault, sleep
import proxy
from history import Found, Kind, now
from processes import children, wait_until
from servers import ROLE, ROOT, Postgres, Standby, TlsPostgres

# Seconds: longer than --db-timeout, and shorter.
LONG = 2 * DB_TIMEOUT
SHORT = 0.7 * DB_TIMEOUT
# A schema of its own that cannot be asked is asked again after pauses that grow to this.
SCHEMA_PAUSE = 8
SHARED, SPLIT = ("shared",), ("split",)
# Orders in a table that is not small.
MANY = 200_000
TERMINATE = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'"


# The server

@fault
def stopped_fast(stage):
    """The database is stopped (fast), and started again."""
    stage.postgres.stop("fast")
    sleep(LONG)
    stage.postgres.start()


@fault
def stopped_for_long(stage):
    """The database is stopped for longer than anybody waits."""
    stage.postgres.stop("fast")
    sleep(35)
    stage.postgres.start()


@fault
def stopped_immediately(stage):
    """The database is stopped without a checkpoint, and recovers when it is started again."""
    stage.postgres.stop("immediate")
    sleep(LONG)
    stage.postgres.start()


@fault
def restarted_often(stage):
    """The database is restarted five times, one time after the other."""
    for _ in range(5):
        stage.postgres.restart("fast")


@fault
def postmaster_killed(stage):
    """SIGKILL of the postmaster; its processes end by themselves."""
    backends = children(stage.postgres.process.pid)
    stage.postgres.process.kill()
    stage.postgres.process.wait()
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in backends), what="the end of the backends")
    sleep(LONG)
    stage.postgres.start()


@fault
def backend_killed(stage):
    """SIGKILL of one of the pool's backends, as when memory is short: PostgreSQL ends all others, and recovers."""
    pid = stage.postgres.psql(f"SELECT min(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'")
    os.kill(int(pid), signal.SIGKILL)
    sleep(1)
    wait_until(lambda: answers(stage.postgres), what="recovery")


def answers(postgres):
    with contextlib.suppress(RuntimeError):
        return postgres.psql("SELECT 1") == "1"
    return False


def freeze(stage, seconds):
    stage.postgres.pause()
    sleep(seconds)
    stage.postgres.resume()


@fault
def frozen_shortly(stage):
    """SIGSTOP of all processes of the database, and SIGCONT before --db-timeout is over."""
    freeze(stage, SHORT)


@fault
def frozen_long(stage):
    """SIGSTOP of all processes of the database, and SIGCONT long after --db-timeout."""
    freeze(stage, LONG + 1)


@fault
def sessions_terminated(stage):
    """pg_terminate_backend of all the pool's sessions, three times a second."""
    for _ in range(15):
        stage.postgres.psql(TERMINATE)
        sleep(0.3)


class FewConnections(Stage):
    settings = {"max_connections": 20}


@fault(stage=FewConnections)
def connections_exhausted(stage):
    """Others take all of max_connections; the pool's sessions are terminated, so that it needs new ones."""
    with contextlib.ExitStack() as others:
        def take_all():
            with contextlib.suppress(RuntimeError, BrokenPipeError):
                while True:
                    other = stage.postgres.session(DB, quiet=True)
                    others.callback(other.end)
                    other.run("SELECT")
                    opened.append(other)

        opened = []
        take_all()
        while opened[0].run(f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{ROLE}'") != "0":
            opened[0].run(TERMINATE)
            take_all()
        sleep(LONG)


# Tables

@fault(layouts=SHARED)
def contracts_locked(stage):
    """merchant_contract_terms is locked ACCESS EXCLUSIVE for longer than --db-timeout."""
    stage.database.lock(LONG, "merchant_contract_terms")


@fault(layouts=SHARED)
def contracts_locked_shortly(stage):
    """merchant_contract_terms is locked ACCESS EXCLUSIVE for less than --db-timeout, again and again, as by a migration."""
    for _ in range(3):
        stage.database.lock(SHORT, "merchant_contract_terms")
        sleep(0.1)


@fault(layouts=SHARED)
def rights_revoked(stage):
    """The role loses its rights, and gets them again by sql/role.sql."""
    stage.sql(f'REVOKE ALL ON merchant_instances, merchant_orders, merchant_contract_terms FROM "{ROLE}"')
    sleep(LONG)
    stage.postgres.psql_file(ROOT / "sql/role.sql", DB)


@fault(layouts=SHARED)
def contracts_renamed(stage):
    """merchant_contract_terms is renamed, and gets its name again."""
    stage.sql("ALTER TABLE merchant_contract_terms RENAME TO away")
    sleep(LONG)
    stage.sql("ALTER TABLE away RENAME TO merchant_contract_terms")


@fault(kinds=(), layouts=SHARED)
def instance_deleted(stage):
    """An instance with orders is deleted, and made again without them. Nobody else may notice."""
    delete = f"DELETE FROM merchant_instances WHERE merchant_id = '{THIRD}'"
    make = f"INSERT INTO merchant_instances (merchant_pub, merchant_id, merchant_name) VALUES (sha256('new'), '{THIRD}', '')"
    for sql, found in (delete, Found(404, no_instance=True)), (make, Found(404)):
        begun = now()
        stage.sql(sql)
        for key in stage.load.settled["third"]:
            stage.timeline.found(key, found, begun, now())
        sleep(LONG)


@fault(layouts=SPLIT, spared=frozenset({OTHER, THIRD}))
def schema_locked(stage):
    """The contracts of one instance are locked for longer than --db-timeout. The others may not notice."""
    stage.database.lock(LONG, "merchant_contract_terms")
    sleep(SCHEMA_PAUSE)


@fault(layouts=SPLIT, spared=frozenset({OTHER, THIRD}))
def schema_renamed(stage):
    """The contracts of one instance are renamed, and get their name again. The others may not notice."""
    contracts_renamed(stage)
    sleep(SCHEMA_PAUSE)


class Filled(Stage):
    """With many orders, of other sessions."""

    def __enter__(self):
        super().__enter__()
        self.sql(f"""
            INSERT INTO merchant_contract_terms (order_serial, merchant_serial, order_id, contract_terms, h_contract_terms,
                   creation_time, pay_deadline, refund_deadline, fulfillment_url, session_id, claim_token)
            SELECT 1000 + n, (SELECT merchant_serial FROM merchant_instances WHERE merchant_id = 'shop'), 'old-' || n, '',
                   sha512(n::text::bytea), n, n, n, 'https://shop.example/' || n % 1000, 'old-' || n, substr(sha256(''), 1, 16)
              FROM generate_series(1, {MANY}) AS n;
            ANALYZE""")
        return self


@fault(stage=Filled, layouts=SHARED)
def reindexed(stage):
    """REINDEX of both tables, again and again."""
    repeat(stage, "REINDEX TABLE merchant_contract_terms; REINDEX TABLE merchant_orders")


@fault(stage=Filled, layouts=SHARED)
def vacuumed_full(stage):
    """VACUUM FULL of both tables, again and again."""
    repeat(stage, "VACUUM FULL ANALYZE merchant_contract_terms; VACUUM FULL ANALYZE merchant_orders")


@fault(stage=Filled, kinds=())
def statistics_emptied(stage):
    """The statistics are those of empty tables."""
    stage.sql("""DELETE FROM pg_statistic; UPDATE pg_class SET reltuples = 0, relpages = 0
                  WHERE oid IN ('merchant_contract_terms'::regclass, 'merchant_orders'::regclass)""")
    sleep(LONG)


@fault(stage=Filled, layouts=SHARED)
def index_dropped(stage):
    """The index of the lookup is dropped, and made again. Meanwhile the table is read once for each session in question, which
    takes seconds for a batch: most requests fail, as those of a slow database do, and the log says why."""
    index = "merchant_contract_terms_by_merchant_session_and_fulfillment"
    stage.sql(f"DROP INDEX {index}")
    sleep(LONG)
    stage.sql(f"CREATE INDEX {index} ON merchant_contract_terms (merchant_serial, fulfillment_url, session_id)")
    # The statement under way goes on without it.
    sleep(DB_TIMEOUT)


def repeat(stage, sql, seconds=LONG):
    end = now() + seconds
    while now() < end:
        for statement in sql.split(";"):
            stage.sql(statement)


# The disk

class SmallDisk(Postgres):
    """Its data directory is a small tmpfs, which only root can mount."""

    SIZE = "160m"

    def _initdb(self):
        self.data.mkdir()
        account = pwd.getpwnam(self.account)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self.SIZE},mode=0700,uid={account.pw_uid},gid={account.pw_gid}",
                        "tmpfs", self.data], check=True)
        super()._initdb()

    def __exit__(self, *_):
        self.stop("immediate")
        subprocess.run(["umount", "-l", self.data], check=False)
        super().__exit__()


class OnSmallDisk(Stage):
    def make_cluster(self):
        return self.stack.enter_context(SmallDisk())


@fault(stage=OnSmallDisk)
def disk_full(stage):
    """The disk of the data and of the write-ahead log is full, until PostgreSQL gives up; then there is space again."""
    filling = stage.postgres.data / "filling"
    with contextlib.suppress(OSError), open(filling, "wb", buffering=0) as file:
        while file.write(bytes(65536)):
            pass
    with contextlib.suppress(RuntimeError):
        while True:
            stage.postgres.psql("SELECT pg_logical_emit_message(true, '', repeat('x', 1000000)) FROM generate_series(1, 20)")
    sleep(LONG)
    filling.unlink()
    if not stage.postgres.running():
        stage.postgres.start()
    wait_until(lambda: answers(stage.postgres), what="recovery")


# A second server

class WithStandby(Stage):
    """A primary that waits for its standby at each COMMIT, and the pool asks whichever can be written to."""

    def make_cluster(self):
        self.primary = super().make_cluster()
        self.standby = Standby(self.primary)
        self.stack.enter_context(self.standby)
        make_synchronous(self.primary)
        return self.primary

    def conninfo(self):
        return (f"host=127.0.0.1,127.0.0.1 port={self.primary.port},{self.standby.port} dbname={DB} user={ROLE} "
                "target_session_attrs=read-write")

    def use(self, primary):
        self.postgres = self.writer.postgres = primary


def make_synchronous(primary):
    primary.psql("ALTER SYSTEM SET synchronous_standby_names = '*'")
    primary.psql("SELECT pg_reload_conf()")


@fault(stage=WithStandby, kinds=())
def failed_over(stage):
    """The primary is killed, and a second later its standby is promoted. Then a standby of that is made in the place of the first
    primary, and promoted when the other has been stopped."""
    with stage.timeline.span(Kind.TROUBLE):
        stage.primary.process.kill()
        stage.primary.process.wait()
        sleep(1)
        stage.standby.promote()
        stage.use(stage.standby)
    back = Standby(stage.standby)
    back.port = stage.primary.port
    stage.kept.enter_context(back)
    make_synchronous(stage.standby)
    sleep(LONG)
    with stage.timeline.span(Kind.TROUBLE):
        stage.standby.stop()
        back.promote()
        stage.use(back)


# The road

class ThroughProxy(Stage):
    def conninfo(self):
        self.proxy = self.stack.enter_context(proxy.Proxy(self.postgres.port))
        return f"host=127.0.0.1 port={self.proxy.port} dbname={DB} user={ROLE} sslmode=disable gssencmode=disable"


def spoil(stage, road, seconds=LONG, afterwards=DB_TIMEOUT):
    """`afterwards` is how long it takes to notice that a connection leads nowhere."""
    stage.proxy.road = road
    sleep(seconds)
    stage.proxy.road = proxy.clear
    sleep(afterwards)


@fault(stage=ThroughProxy, kinds=())
def delayed_a_little(stage):
    """Each way takes 50 ms. Nobody may notice but by that."""
    spoil(stage, proxy.delayed(0.05), afterwards=0)


@fault(stage=ThroughProxy)
def delayed_much(stage):
    """Each way takes longer than --db-timeout."""
    spoil(stage, proxy.delayed(DB_TIMEOUT + 0.5))


@fault(stage=ThroughProxy)
def swallowed(stage):
    """What is sent vanishes, in both directions, and nothing is closed."""
    spoil(stage, proxy.swallowed)


@fault(stage=ThroughProxy)
def truncated(stage):
    """Each connection is cut within the first piece that passes."""
    spoil(stage, proxy.truncated, afterwards=0)


@fault(stage=ThroughProxy)
def dripping_fast(stage):
    """One byte at a time, as fast as it goes, which depends on the machine."""
    spoil(stage, proxy.dripping(0), afterwards=0)


@fault(stage=ThroughProxy)
def dripping_slowly(stage):
    """A byte each millisecond."""
    spoil(stage, proxy.dripping(0.001))


@fault(stage=ThroughProxy, conceivable="^untrue")
def garbled_answers(stage):
    """A bit, or some bytes, of a third of the pieces that the database sends are others. TCP has checksums against that, and
    TLS much better ones; whoever reads a protocol without any cannot know that an order id has another letter. Nothing else
    may come of it: all are answered in time, no worker dies, and the log has nothing of it."""
    spoil(stage, proxy.garbled(to_client=True))


@fault(stage=ThroughProxy, conceivable="^untrue")
def garbled_questions(stage):
    """The same in what the pool sends: the database is asked about a session with another letter."""
    spoil(stage, proxy.garbled(to_client=False))


class ThroughProxyByTls(ThroughProxy):
    def make_cluster(self):
        return self.stack.enter_context(TlsPostgres())

    def conninfo(self):
        return super().conninfo().replace("sslmode=disable", "sslmode=require")


@fault(stage=ThroughProxyByTls)
def garbled_tls(stage):
    """The same in both directions of a connection by TLS: nothing untrue may come of it."""
    spoil(stage, proxy.garbled(to_client=None))


@fault(stage=ThroughProxyByTls)
def truncated_tls(stage):
    """Each connection by TLS is cut within the first piece that passes."""
    spoil(stage, proxy.truncated, afterwards=0)
