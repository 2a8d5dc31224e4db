-- SPDX-License-Identifier: GPL-3.0-or-later
-- The common part of the statements that look up many sessions at once: lookup.sql, lookup-unindexed.sql,
-- lookup-claimed.sql and poll.sql. Each puts a WITH clause before it that names the unclaimed orders `unclaimed`.
--
-- $1 instance ids, '' for the instance of the un-prefixed path; $2 fulfillment URLs; $3 session ids.
-- The n-th elements make up the n-th key.
--
-- One row for each key: n; paid; order id; whether a wallet has claimed an order. No row: there is no such
-- instance. No order id: the session is unknown there. A paid order wins over an unpaid one, then the newest wins.
-- Claimed orders are in merchant_contract_terms, unclaimed ones in merchant_orders, which is read only where no
-- claimed order is paid.
--
-- The plan must not depend on statistics: a table may be empty when its plan is made, and in a shop that uses no
-- sessions a session id distinguishes nothing. Therefore each key has a subquery of its own (LIMIT keeps it one)
-- that asks for a range of session ids with one element, in the order of session ids. Only an index on the three
-- columns of a key returns rows in this order; for any other the planner has to sort, and session.sql makes
-- sorting prohibitively expensive. With `session_id = k.session` the planner would ignore the order. What is left,
-- sorting the few rows of one session id, is an incremental sort, which PostgreSQL has since version 13.
--
-- Where each instance has a schema of its own, a statement is about one instance, and layout_make_statement() makes its
-- text from this one: the comment `schema` becomes the schema's name, the text from the comment `instances` to `end`
-- the instance's serial, and if the tables have no merchant_serial, that from `serial` to `end` is left out.
SELECT k.n, c.paid IS TRUE,
       CASE WHEN o.order_id IS NULL
              OR (c.creation_time, c.order_serial) >= (o.creation_time, o.order_serial)
            THEN c.order_id ELSE o.order_id END,
       c.order_id IS NOT NULL
FROM unnest($1::text[], $2::text[], $3::text[])
         WITH ORDINALITY AS k (instance, url, session, n)
/*instances*/
JOIN merchant_instances i ON i.merchant_id =
    CASE k.instance
    WHEN '' THEN (SELECT min(merchant_id) FROM merchant_instances WHERE merchant_id IN ('admin', 'default'))
    ELSE k.instance END
/*end*/
LEFT JOIN LATERAL (
    SELECT paid, order_id, creation_time, order_serial
    FROM /*schema*/merchant_contract_terms
    WHERE /*serial*/merchant_serial = i.merchant_serial AND /*end*/fulfillment_url = k.url
      AND session_id BETWEEN k.session AND k.session AND k.session <> ''
    ORDER BY session_id, paid DESC, creation_time DESC, order_serial DESC
    LIMIT 1
) c ON true
LEFT JOIN LATERAL (
    SELECT order_id, creation_time, order_serial
    FROM unclaimed
    WHERE /*serial*/merchant_serial = i.merchant_serial AND /*end*/fulfillment_url = k.url
      AND session_id BETWEEN k.session AND k.session AND k.session <> ''
      AND c.paid IS NOT TRUE
    ORDER BY session_id, creation_time DESC, order_serial DESC
    LIMIT 1
) o ON true
