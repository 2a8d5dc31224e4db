-- SPDX-License-Identifier: GPL-3.0-or-later
--
-- Optional. A lookup searches merchant_orders by session too, where that table has the columns. A merchant keeps
-- few orders there: those that nobody has paid yet. If yours are many (abandoned offers with a late deadline, or bots
-- that make orders) and no index begins with these columns, each lookup reads all offers of the instance; this
-- index ends that. It does not lock the table. To be run by the owner of the table:
--
--     PGOPTIONS='-c search_path=merchant,public' psql -d taler-merchant -f sql/orders-index.sql

CREATE INDEX CONCURRENTLY IF NOT EXISTS merchant_orders_by_merchant_session_and_fulfillment
  ON merchant_orders (merchant_serial, fulfillment_url, session_id);
