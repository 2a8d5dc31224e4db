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
-- The keys drive nested loops over the indexes (see session.sql). Of several orders the one that is told
-- is a paid one, else the newest. Unclaimed orders are looked at only where no contract has been paid.
WITH contract AS MATERIALIZED (
    SELECT DISTINCT ON (k.n) k.n, k.url, k.session, k.all_asked, i.merchant_serial,
           c.paid, c.order_id, c.creation_time, c.order_serial
    FROM unnest($1::text[], $2::text[], $3::text[], $4::bool[])
             WITH ORDINALITY AS k (instance, url, session, all_asked, n)
    JOIN merchant_instances i ON i.merchant_id =
        CASE k.instance
        WHEN '' THEN (SELECT merchant_id FROM merchant_instances
                      WHERE merchant_id IN ('admin', 'default') ORDER BY merchant_id LIMIT 1)
        ELSE k.instance END
    LEFT JOIN merchant_contract_terms c ON c.merchant_serial = i.merchant_serial
        AND c.fulfillment_url = k.url AND c.session_id = k.session
        AND k.session <> '' AND (k.all_asked OR c.paid)
    ORDER BY k.n, c.paid DESC NULLS LAST, c.creation_time DESC, c.order_serial DESC
)
SELECT DISTINCT ON (n) n, paid IS TRUE, order_id
FROM (
    SELECT n, paid, order_id, creation_time, order_serial
    FROM contract WHERE all_asked OR paid
    UNION ALL
    SELECT c.n, false, o.order_id, o.creation_time, o.order_serial
    FROM contract c
    JOIN merchant_orders o ON o.merchant_serial = c.merchant_serial
        AND o.fulfillment_url = c.url AND o.session_id = c.session
    WHERE c.session <> '' AND c.all_asked AND c.paid IS NOT TRUE
) found
ORDER BY n, paid IS TRUE DESC, creation_time DESC NULLS LAST, order_serial DESC NULLS LAST
