-- SPDX-License-Identifier: GPL-3.0-or-later
--
-- A busy shop on top of conf/example.sql: eight instances, 500,000 contracts of which 400,000 are paid, 100,000 orders
-- that no wallet has claimed. shop.py knows the same rules: contract N is of instance shop-(N mod 8 + 1), of article
-- N mod 1000 there, in the session md5('session N'), and unpaid where N is a multiple of 5.

BEGIN;

-- Foreign keys need not be looked up: they hold as it is made.
SET LOCAL session_replication_role = replica;

INSERT INTO merchant.merchant_instances (merchant_pub, merchant_id, merchant_name)
SELECT sha256(convert_to('shop-' || n, 'UTF8')), 'shop-' || n, 'Shop ' || n
  FROM generate_series(1, 8) AS n;

CREATE FUNCTION demo.terms(order_id text, url text) RETURNS bytea
  LANGUAGE sql STABLE AS
$$
  SELECT convert_to(json_build_object('order_id', order_id
                                    , 'amount', 'KUDOS:1'
                                    , 'fulfillment_url', url
                                    , 'nonce', repeat(md5(order_id), 10))::text, 'UTF8')
$$;

-- One contract in 50 was paid without a session, one in 50 is a second purchase in the session of an earlier one.
CREATE TEMPORARY TABLE contracts AS
SELECT n
     , merchant_serial
     , 'order-' || n AS order_id
     , format('https://%s.example/articles/%s', merchant_id, n % 1000) AS url
     , CASE n % 50
         WHEN 49 THEN ''
         WHEN 48 THEN md5('session ' || n - n / 1000 % 2 * 1000)
         ELSE md5('session ' || n)
       END AS session
     , n % 5 <> 0 AS paid
     , 1700000000000000 + n * 60000000 AS creation_time
  FROM generate_series(1::bigint, 500000) AS n
  JOIN merchant.merchant_instances ON merchant_id = 'shop-' || n % 8 + 1;

INSERT INTO merchant.merchant_contract_terms
  ( order_serial, merchant_serial, order_id, contract_terms, h_contract_terms
  , creation_time, pay_deadline, refund_deadline, paid, fulfillment_url, session_id, claim_token)
SELECT 1000 + n, merchant_serial, order_id, demo.terms(order_id, url), sha512(convert_to(order_id, 'UTF8'))
     , creation_time, creation_time + 86400000000, creation_time, paid, url, session, decode(md5(order_id), 'hex')
  FROM contracts;

-- The row of an offer stays until the order is paid.
INSERT INTO merchant.merchant_orders
  ( order_serial, merchant_serial, order_id, claim_token, h_post_data, pay_deadline, creation_time
  , contract_terms, fulfillment_url, session_id)
SELECT 1000 + n, merchant_serial, order_id, decode(md5(order_id), 'hex'), sha512(convert_to(order_id, 'UTF8'))
     , creation_time + 86400000000, creation_time, demo.terms(order_id, url), url, session
  FROM contracts
 WHERE NOT paid;

INSERT INTO merchant.merchant_orders
  ( order_serial, merchant_serial, order_id, claim_token, h_post_data, pay_deadline, creation_time
  , contract_terms, fulfillment_url, session_id)
SELECT 1000000 + n, merchant_serial, 'offer-' || n, decode(md5(order_id), 'hex'), sha512(convert_to(order_id, 'UTF8'))
     , creation_time + 86400000000, creation_time, demo.terms(order_id, url), url, md5('offer ' || n)
  FROM contracts
 WHERE n <= 100000;

COMMIT;

VACUUM ANALYZE merchant.merchant_instances, merchant.merchant_orders, merchant.merchant_contract_terms;
CHECKPOINT;
