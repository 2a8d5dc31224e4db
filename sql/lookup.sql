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
-- The plan must not depend on statistics: those of a shop without sessions say that a session id tells
-- nothing apart, and any index of the instance would do. So each key has a subquery of its own (LIMIT
-- keeps it one), the session id is asked for twice over, which the planner takes for a narrow range, and
-- the order is by expressions that no index offers.
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
    FROM merchant_orders
    WHERE merchant_serial = i.merchant_serial AND fulfillment_url = k.url
      AND session_id = k.session AND session_id BETWEEN k.session AND k.session AND k.session <> ''
      AND c.paid IS NOT TRUE
    ORDER BY -creation_time, -order_serial
    LIMIT 1
) o ON true
