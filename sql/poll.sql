-- SPDX-License-Identifier: GPL-3.0-or-later
-- Which of many sessions have been paid: all that matters while a request waits. Parameters and reasons
-- are those of lookup.sql. One row, n, for each key that has been paid; which order that was is then
-- for lookup.sql to say.
SELECT k.n
FROM unnest($1::text[], $2::text[], $3::text[])
         WITH ORDINALITY AS k (instance, url, session, n)
JOIN merchant_instances i ON i.merchant_id =
    CASE k.instance
    WHEN '' THEN (SELECT merchant_id FROM merchant_instances
                  WHERE merchant_id IN ('admin', 'default') ORDER BY merchant_id LIMIT 1)
    ELSE k.instance END
CROSS JOIN LATERAL (
    SELECT FROM merchant_contract_terms
    WHERE merchant_serial = i.merchant_serial AND fulfillment_url = k.url
      AND session_id = k.session AND session_id BETWEEN k.session AND k.session AND k.session <> ''
      AND paid
    LIMIT 1
) c
