-- SPDX-License-Identifier: GPL-3.0-or-later
--
-- Visitors of the shop of shop.sql who have no order yet, and what happens to them, in schema bench. Visitor N is in
-- the session md5('visitor N'), at instance shop-(N mod 8 + 1), article N mod 1000. shop.py knows the same rules.

BEGIN;

CREATE SCHEMA bench;

CREATE FUNCTION bench.visitor(n bigint, OUT order_serial bigint, OUT instance text, OUT order_id text, OUT url text
                            , OUT session text, OUT creation_time bigint)
  LANGUAGE sql IMMUTABLE AS
$$
  SELECT 10000000 + n
       , 'shop-' || n % 8 + 1
       , 'visitor-' || n
       , format('https://shop-%s.example/articles/%s', n % 8 + 1, n % 1000)
       , md5('visitor ' || n)
       , 1800000000000000 + n * 1000000
$$;

-- The wallet has claimed the order, and has paid it or not.
CREATE FUNCTION bench.add_contract(n bigint, paid boolean) RETURNS void
  LANGUAGE sql AS
$$
  INSERT INTO merchant.merchant_contract_terms
    ( order_serial, merchant_serial, order_id, contract_terms, h_contract_terms, creation_time, pay_deadline
    , refund_deadline, paid, fulfillment_url, session_id, claim_token)
  SELECT order_serial, merchant_serial, order_id, demo.terms(order_id, url), sha512(convert_to(order_id, 'UTF8'))
       , creation_time, creation_time + 86400000000, creation_time, add_contract.paid, url, session
       , decode(md5(order_id), 'hex')
    FROM bench.visitor(n) AS visitor
    JOIN merchant.merchant_instances ON merchant_id = visitor.instance
$$;

CREATE FUNCTION bench.add_offer(n bigint) RETURNS void
  LANGUAGE sql AS
$$
  INSERT INTO merchant.merchant_orders
    ( order_serial, merchant_serial, order_id, claim_token, h_post_data, pay_deadline, creation_time, contract_terms
    , fulfillment_url, session_id)
  SELECT order_serial, merchant_serial, order_id, decode(md5(order_id), 'hex'), sha512(convert_to(order_id, 'UTF8'))
       , creation_time + 86400000000, creation_time, demo.terms(order_id, url), url, session
    FROM bench.visitor(n) AS visitor
    JOIN merchant.merchant_instances ON merchant_id = visitor.instance
$$;

CREATE FUNCTION bench.pay(n bigint) RETURNS void
  LANGUAGE sql AS
$$
  UPDATE merchant.merchant_contract_terms SET paid = true WHERE order_serial = (bench.visitor(n)).order_serial
$$;

-- An offer becomes a contract that is paid already.
CREATE FUNCTION bench.pay_offer(n bigint) RETURNS void
  LANGUAGE sql AS
$$
  SELECT bench.add_contract(n, true);
  DELETE FROM merchant.merchant_orders WHERE order_serial = (bench.visitor(n)).order_serial
$$;

-- What other shoppers do: an order is made, and the contract of another one is updated.
CREATE SEQUENCE bench.disturbances;

CREATE FUNCTION bench.disturb() RETURNS void
  LANGUAGE sql AS
$$
  SELECT bench.add_offer(100000000 + nextval('bench.disturbances'));
  UPDATE merchant.merchant_contract_terms SET wired = NOT wired
   WHERE order_serial = (SELECT 1001 + 5 * floor(random() * 100000)::bigint)
$$;

COMMIT;
