-- SPDX-License-Identifier: GPL-3.0-or-later
-- The settings of a database session, before the lookup is prepared.
--
-- $1 the schema that has the merchant's tables; $2 statement_timeout in milliseconds; $3 'on' where
-- merchant_orders has no index for the lookup and a hash join must be allowed, else 'off'.
--
-- A plan is made once and kept. It has to use the indexes also when the tables were empty at that time
-- or were never analysed, so the plans that read a table from end to end are switched off.
SELECT set_config('search_path', $1, false),
       set_config('statement_timeout', $2, false),
       set_config('enable_hashjoin', $3, false),
       set_config('enable_mergejoin', 'off', false),
       set_config('enable_seqscan', 'off', false),
       set_config('jit', 'off', false),
       set_config('plan_cache_mode', 'force_generic_plan', false),
       set_config('default_transaction_read_only', 'on', false)
