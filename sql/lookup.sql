-- SPDX-License-Identifier: GPL-3.0-or-later
-- What is known of many sessions at once.
--
-- $1 instance ids, '' for the instance of the un-prefixed path; $2 fulfillment URLs; $3 session ids;
-- $4 whether all is asked, or only if the session has been paid. The n-th elements make up the n-th key.
--
-- One row for each key of which something is known: n, paid, order id. Where all is asked, no row
-- means that there is no such instance, and no order id that the session is unknown there. Where only
-- payment is asked, there is a row for a paid session and none otherwise.
--
-- The keys drive nested loops over the indexes (see session.sql); the order decides which of several
-- orders is told: a paid one, then the newest.
WITH key AS MATERIALIZED (
    SELECT k.n, k.url, k.session, k.all_asked, i.merchant_serial
    FROM unnest($1::text[], $2::text[], $3::text[], $4::bool[])
             WITH ORDINALITY AS k (instance, url, session, all_asked, n)
    JOIN merchant_instances i ON i.merchant_id =
        CASE k.instance
        WHEN '' THEN (SELECT merchant_id FROM merchant_instances
                      WHERE merchant_id IN ('admin', 'default') ORDER BY merchant_id LIMIT 1)
        ELSE k.instance END
), contract AS MATERIALIZED (
    SELECT key.n, c.paid, c.order_id, c.creation_time, c.order_serial
    FROM key
    JOIN merchant_contract_terms c ON c.merchant_serial = key.merchant_serial
        AND c.fulfillment_url = key.url AND c.session_id = key.session
    WHERE key.session <> '' AND (key.all_asked OR c.paid)
)
SELECT DISTINCT ON (n) n, paid, order_id
FROM (
    SELECT * FROM contract
    UNION ALL
    SELECT key.n, false, o.order_id, o.creation_time, o.order_serial
    FROM key
    JOIN merchant_orders o ON o.merchant_serial = key.merchant_serial
        AND o.fulfillment_url = key.url AND o.session_id = key.session
    WHERE key.session <> '' AND key.all_asked
      AND key.n NOT IN (SELECT n FROM contract WHERE paid)
    UNION ALL
    SELECT n, false, NULL, NULL, NULL FROM key WHERE all_asked
) found
ORDER BY n, paid DESC, creation_time DESC NULLS LAST, order_serial DESC NULLS LAST
