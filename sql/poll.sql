-- SPDX-License-Identifier: GPL-3.0-or-later
-- Which of many sessions have been paid: all that matters while a request waits. Parameters, rows and
-- reasons are those of lookup.sql, but there is a row only for a key that has been paid.
SELECT k.n, true, c.order_id
FROM unnest($1::text[], $2::text[], $3::text[])
         WITH ORDINALITY AS k (instance, url, session, n)
JOIN merchant_instances i ON i.merchant_id =
    CASE k.instance
    WHEN '' THEN (SELECT merchant_id FROM merchant_instances
                  WHERE merchant_id IN ('admin', 'default') ORDER BY merchant_id LIMIT 1)
    ELSE k.instance END
JOIN LATERAL (
    SELECT order_id
    FROM merchant_contract_terms
    WHERE merchant_serial = i.merchant_serial AND fulfillment_url = k.url
      AND session_id = k.session AND session_id BETWEEN k.session AND k.session AND k.session <> ''
      AND paid
    ORDER BY -creation_time, -order_serial
    LIMIT 1
) c ON true
