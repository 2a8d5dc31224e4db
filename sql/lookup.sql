-- SPDX-License-Identifier: GPL-3.0-or-later
-- Everything that is known of many sessions. See keys.sql.
WITH offer AS (
    SELECT merchant_serial, fulfillment_url, session_id, order_id, creation_time, order_serial
    FROM merchant_orders
)
-- include keys.sql
