-- SPDX-License-Identifier: GPL-3.0-or-later
-- Everything that is known of many sessions. See keys.sql.
WITH unclaimed AS (
    SELECT /*serial*/merchant_serial, /*end*/fulfillment_url, session_id, order_id, creation_time, order_serial
    FROM /*schema*/merchant_orders
)
-- include keys.sql
