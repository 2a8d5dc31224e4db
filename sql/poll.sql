-- SPDX-License-Identifier: GPL-3.0-or-later
-- Which of many sessions have been paid: what matters while a request waits, at half the cost of
-- lookup.sql. Parameters and rows are as there, but only for keys that have been paid.
SELECT DISTINCT ON (k.n) k.n, c.paid, c.order_id
FROM unnest($1::text[], $2::text[], $3::text[])
         WITH ORDINALITY AS k (instance, url, session, n)
JOIN merchant_instances i ON i.merchant_id =
    CASE k.instance
    WHEN '' THEN (SELECT merchant_id FROM merchant_instances
                  WHERE merchant_id IN ('admin', 'default') ORDER BY merchant_id LIMIT 1)
    ELSE k.instance END
JOIN merchant_contract_terms c ON c.merchant_serial = i.merchant_serial
    AND c.fulfillment_url = k.url AND c.session_id = k.session
WHERE k.session <> '' AND c.paid
ORDER BY k.n, c.creation_time DESC, c.order_serial DESC
