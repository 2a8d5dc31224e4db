-- SPDX-License-Identifier: GPL-3.0-or-later
-- The settings that the lookups need: of a database session, before the statements are prepared; or of one transaction.
--
-- $1 the schema that has the merchant's tables; $2 statement_timeout and $3 lock_timeout, in milliseconds, 0: none;
-- $4 true: for the transaction that this statement runs in, as a pooler needs it. The session then keeps what it had.
--
-- A plan is made once and kept, so it has to use the indexes also where it was made for tables that were still
-- small: scans of whole tables and sorts are switched off (see keys.sql for the latter).
--
-- Row-level security leaves out rows that a policy hides, and a session that is paid would be unknown: row_security makes
-- that an error. A role that may see all rows (BYPASSRLS) is not affected.
--
-- Lookups are single statements: where the database's default is serializable they would take part in the conflicts of the
-- merchant's transactions, and a deferrable one waits for these. A transaction that runs already keeps what it has.
SELECT set_config('search_path', $1, $4),
       set_config('statement_timeout', $2, $4),
       set_config('lock_timeout', $3, $4),
       set_config('row_security', 'off', $4),
       set_config('enable_seqscan', 'off', $4),
       set_config('enable_sort', 'off', $4),
       set_config('jit', 'off', $4),
       set_config('plan_cache_mode', 'force_generic_plan', $4),
       set_config('default_transaction_isolation', 'read committed', $4),
       set_config('default_transaction_deferrable', 'off', $4),
       set_config(CASE WHEN $4 THEN 'transaction_read_only' ELSE 'default_transaction_read_only' END, 'on', $4)
