-- SPDX-License-Identifier: GPL-3.0-or-later
-- As lookup.sql, for databases of 2022, whose merchant_orders has neither session_id nor fulfillment_url: an
-- unclaimed order cannot be found by its session there. The planner removes what reads an empty `unclaimed`.
WITH unclaimed AS (
    SELECT NULL::bigint AS merchant_serial, NULL::text AS fulfillment_url, NULL::text AS session_id,
           NULL::text AS order_id, NULL::bigint AS creation_time, NULL::bigint AS order_serial
    WHERE false
)
-- include keys.sql
