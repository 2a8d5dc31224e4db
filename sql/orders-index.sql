-- SPDX-License-Identifier: GPL-3.0-or-later
--
-- Optional. A lookup searches merchant_orders by session too, where that table has the columns. A merchant keeps
-- few orders there: those that nobody has paid yet. If yours are many (abandoned offers with a late deadline, or bots
-- that make orders) and no index begins with these columns, each lookup reads all offers of the instance; this
-- index ends that. It does not lock the table. To be run by the owner of the table, as often as you like:
--
--     psql -d taler-merchant -f sql/orders-index.sql
--
-- Where each instance has a schema of its own, each schema gets one that has the table with these columns.

\set ON_ERROR_STOP on

SELECT format('CREATE INDEX CONCURRENTLY IF NOT EXISTS merchant_orders_by_merchant_session_and_fulfillment '
              'ON %I.merchant_orders (%s)'
            , n.nspname
            , string_agg(a.attname, ', '
                         ORDER BY array_position('{merchant_serial,fulfillment_url,session_id}', a.attname::text)))
  FROM pg_namespace n
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = 'merchant_orders' AND c.relkind = 'r'
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE a.attname IN ('merchant_serial', 'fulfillment_url', 'session_id')
   AND n.nspname !~ '^pg_'
 GROUP BY n.nspname
HAVING count(*) FILTER (WHERE a.attname <> 'merchant_serial') = 2 \gexec
