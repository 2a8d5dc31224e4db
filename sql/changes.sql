-- SPDX-License-Identifier: GPL-3.0-or-later
-- A text that is the same in two statements only if nothing was committed between them.
--
-- On a primary a statement sees the rows that its snapshot selects, so two statements with the same snapshot see
-- the same rows. On a standby a snapshot does not list the transactions in progress; there the position up to which
-- the log is replayed tells. A commit becomes visible a moment before this position counts it, so it may be seen by
-- a statement before the text changes, but the text changes after every commit. A promotion changes the text.
SELECT CASE WHEN pg_is_in_recovery()
            THEN concat('replayed ', pg_last_wal_replay_lsn())
            ELSE concat('snapshot ', pg_current_snapshot()) END
