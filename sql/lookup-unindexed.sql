-- SPDX-License-Identifier: GPL-3.0-or-later
-- As lookup.sql, for a merchant_orders without an index on the three columns of a key: its rows for any
-- of the sessions are picked out first, once for all keys. IS TRUE keeps that a look into a hash table.
WITH offer AS MATERIALIZED (
    SELECT merchant_serial, fulfillment_url, session_id, order_id, creation_time, order_serial
    FROM merchant_orders
    WHERE (session_id IN (SELECT unnest($3::text[]))) IS TRUE
)
SELECT k.n, c.paid IS TRUE,
       CASE WHEN o.order_id IS NULL
              OR (c.creation_time, c.order_serial) >= (o.creation_time, o.order_serial)
            THEN c.order_id ELSE o.order_id END
FROM unnest($1::text[], $2::text[], $3::text[])
         WITH ORDINALITY AS k (instance, url, session, n)
JOIN merchant_instances i ON i.merchant_id =
    CASE k.instance
    WHEN '' THEN (SELECT merchant_id FROM merchant_instances
                  WHERE merchant_id IN ('admin', 'default') ORDER BY merchant_id LIMIT 1)
    ELSE k.instance END
LEFT JOIN LATERAL (
    SELECT paid, order_id, creation_time, order_serial
    FROM merchant_contract_terms
    WHERE merchant_serial = i.merchant_serial AND fulfillment_url = k.url
      AND session_id = k.session AND session_id BETWEEN k.session AND k.session AND k.session <> ''
    ORDER BY paid DESC, -creation_time, -order_serial
    LIMIT 1
) c ON true
LEFT JOIN LATERAL (
    SELECT order_id, creation_time, order_serial
    FROM offer
    WHERE merchant_serial = i.merchant_serial AND fulfillment_url = k.url
      AND session_id = k.session AND k.session <> ''
      AND c.paid IS NOT TRUE
    ORDER BY -creation_time, -order_serial
    LIMIT 1
) o ON true
