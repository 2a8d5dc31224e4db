-- SPDX-License-Identifier: GPL-3.0-or-later
-- As lookup.sql, for a merchant_orders without an index on the three columns of a key: its rows for any of the
-- session ids are read first, once for all keys. IS TRUE makes the planner use a hash table of the session ids.
WITH unclaimed AS MATERIALIZED (
    SELECT /*serial*/merchant_serial, /*end*/fulfillment_url, session_id, order_id, creation_time, order_serial
    FROM /*schema*/merchant_orders
    WHERE (session_id IN (SELECT unnest($3::text[]))) IS TRUE
)
-- include keys.sql
