-- SPDX-License-Identifier: GPL-3.0-or-later
-- As changes.sql, for PostgreSQL before version 13, where the function has another name.
SELECT CASE WHEN pg_is_in_recovery()
            THEN concat('replayed ', pg_last_wal_replay_lsn())
            ELSE concat('snapshot ', txid_current_snapshot()) END
