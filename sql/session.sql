-- SPDX-License-Identifier: GPL-3.0-or-later
-- The settings of a database session, before the statements are prepared.
--
-- $1 the schema that has the merchant's tables; $2 statement_timeout and $3 lock_timeout, in milliseconds, 0: none.
--
-- A plan is made once and kept, so it has to use the indexes also where it was made for tables that were still
-- small: scans of whole tables and sorts are switched off (see keys.sql for the latter).
SELECT set_config('search_path', $1, false),
       set_config('statement_timeout', $2, false),
       set_config('lock_timeout', $3, false),
       set_config('enable_seqscan', 'off', false),
       set_config('enable_sort', 'off', false),
       set_config('jit', 'off', false),
       set_config('plan_cache_mode', 'force_generic_plan', false),
       set_config('default_transaction_read_only', 'on', false)
