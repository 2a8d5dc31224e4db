-- SPDX-License-Identifier: GPL-3.0-or-later
-- What is known of many sessions at once.
--
-- $1 instance ids, '' for the instance of the un-prefixed path; $2 fulfillment URLs; $3 session ids.
-- The n-th elements make up the n-th key.
--
-- One row for each key: n, paid, order id. No row: there is no such instance. No order id: the session is
-- unknown there. Of several orders a paid one is told, else the newest. Unclaimed orders are looked at
-- only where no contract has been paid.
--
-- The keys drive nested loops over the indexes (see session.sql).
WITH contract AS MATERIALIZED (
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
)
SELECT DISTINCT ON (n) n, paid, order_id
FROM (
    SELECT n, paid, order_id, creation_time, order_serial
    FROM contract
    UNION ALL
    SELECT c.n, false, o.order_id, o.creation_time, o.order_serial
    FROM contract c
    JOIN merchant_orders o ON o.merchant_serial = c.merchant_serial
        AND o.fulfillment_url = c.url AND o.session_id = c.session
    WHERE c.session <> '' AND NOT c.paid
) found
ORDER BY n, paid DESC, creation_time DESC NULLS LAST, order_serial DESC
