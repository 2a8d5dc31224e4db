-- SPDX-License-Identifier: GPL-3.0-or-later
-- As lookup.sql, for databases of 2022, whose merchant_orders has neither session_id nor
-- fulfillment_url: an order that no wallet has claimed cannot be found by its session there.
SELECT k.n, c.paid IS TRUE, c.order_id
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
