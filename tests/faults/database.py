# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of the database."""

from frame import DB_TIMEOUT, fault, sleep


@fault
def stopped_fast(stage):
    """The database is stopped (fast) and started again."""
    stage.postgres.stop("fast")
    sleep(4)
    stage.postgres.start()


@fault
def stopped_immediately(stage):
    """The database is stopped as in an emergency, and recovers when it is started again."""
    stage.postgres.stop("immediate")
    sleep(4)
    stage.postgres.start()


@fault
def frozen_for_less_than_the_timeout(stage):
    """All processes of the database are stopped by SIGSTOP, for less than --db-timeout."""
    stage.postgres.pause()
    sleep(DB_TIMEOUT * 0.7)
    stage.postgres.resume()
