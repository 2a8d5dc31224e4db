-- SPDX-License-Identifier: GPL-3.0-or-later
-- As lookup.sql, for databases of 2022, whose merchant_orders has neither session_id nor
-- fulfillment_url: an order that no wallet has claimed cannot be found by its session there.
SELECT n, paid, order_id
FROM (
    SELECT DISTINCT ON (k.n) k.n, k.url, k.session, i.merchant_serial,
           c.paid IS TRUE AS paid, c.order_id, c.creation_time, c.order_serial
    FROM unnest($1::text[], $2::text[], $3::text[])
             WITH ORDINALITY AS k (instance, url, session, n)
    JOIN merchant_instances i ON i.merchant_id =
        CASE k.instance
        WHEN '' THEN (SELECT merchant_id FROM merchant_instances
                      WHERE merchant_id IN ('admin', 'default') ORDER BY merchant_id LIMIT 1)
        ELSE k.instance END
    LEFT JOIN merchant_contract_terms c ON c.merchant_serial = i.merchant_serial
        AND c.fulfillment_url = k.url AND c.session_id = k.session AND k.session <> ''
    ORDER BY k.n, c.paid IS TRUE DESC, c.creation_time DESC NULLS LAST, c.order_serial DESC
) contract
