-- SPDX-License-Identifier: GPL-3.0-or-later
-- As lookup.sql, for databases of 2022, whose merchant_orders has neither session_id nor
-- fulfillment_url: an order that no wallet has claimed cannot be found by its session there.
WITH key AS MATERIALIZED (
    SELECT k.n, k.url, k.session, k.all_asked, i.merchant_serial
    FROM unnest($1::text[], $2::text[], $3::text[], $4::bool[])
             WITH ORDINALITY AS k (instance, url, session, all_asked, n)
    JOIN merchant_instances i ON i.merchant_id =
        CASE k.instance
        WHEN '' THEN (SELECT merchant_id FROM merchant_instances
                      WHERE merchant_id IN ('admin', 'default') ORDER BY merchant_id LIMIT 1)
        ELSE k.instance END
)
SELECT DISTINCT ON (n) n, paid, order_id
FROM (
    SELECT key.n, c.paid, c.order_id, c.creation_time, c.order_serial
    FROM key
    JOIN merchant_contract_terms c ON c.merchant_serial = key.merchant_serial
        AND c.fulfillment_url = key.url AND c.session_id = key.session
    WHERE key.session <> '' AND (key.all_asked OR c.paid)
    UNION ALL
    SELECT n, false, NULL, NULL, NULL FROM key WHERE all_asked
) found
ORDER BY n, paid DESC, creation_time DESC NULLS LAST, order_serial DESC NULLS LAST
