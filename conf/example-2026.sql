-- SPDX-License-Identifier: GPL-3.0-or-later
--
-- Makes of the database of example.sql one as merchants have it since 2026: each instance has a schema of its own for
-- its orders. How a merchant names the schemas is not known: merchant_instance_SERIAL is made up.

BEGIN;

CREATE FUNCTION demo.schema_of(instance text) RETURNS text
  LANGUAGE sql AS
$$
  SELECT 'merchant_instance_' || merchant_serial
    FROM merchant.merchant_instances
   WHERE merchant_id = instance
$$;

CREATE PROCEDURE demo.split_instance(instance text)
  LANGUAGE plpgsql AS
$$
BEGIN
  EXECUTE format('CREATE SCHEMA %I', demo.schema_of(instance));
  PERFORM set_config('search_path', quote_ident(demo.schema_of(instance)), true);

  CREATE TABLE merchant_orders (LIKE merchant.merchant_orders INCLUDING ALL);
  INSERT INTO merchant_orders
  SELECT offer.* FROM merchant.merchant_orders AS offer JOIN merchant.merchant_instances USING (merchant_serial)
   WHERE merchant_id = instance;
  ALTER TABLE merchant_orders ALTER order_serial RESTART 1000;

  CREATE TABLE merchant_contract_terms (LIKE merchant.merchant_contract_terms INCLUDING ALL);
  INSERT INTO merchant_contract_terms
  SELECT contract.* FROM merchant.merchant_contract_terms AS contract
    JOIN merchant.merchant_instances USING (merchant_serial)
   WHERE merchant_id = instance;
END
$$;

-- Unqualified names are those of the instance's schema from here to the end of the transaction.
CREATE PROCEDURE demo.enter(instance text)
  LANGUAGE sql AS
$$
  SELECT set_config('search_path', quote_ident(demo.schema_of(instance)), true)
$$;

CREATE PROCEDURE demo.enter_schema_of_order(wanted text)
  LANGUAGE plpgsql AS
$$
DECLARE
  instance text;
BEGIN
  FOR instance IN SELECT merchant_id FROM merchant.merchant_instances LOOP
    CALL demo.enter(instance);
    IF EXISTS (SELECT FROM merchant_orders AS offer WHERE offer.order_id = wanted) THEN
      RETURN;
    END IF;
  END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION demo.make_order(instance text, order_id text, session text, url text) RETURNS text
  LANGUAGE plpgsql AS
$$
BEGIN
  CALL demo.enter(instance);
  INSERT INTO merchant_orders
    ( merchant_serial, order_id, claim_token, h_post_data, pay_deadline, creation_time
    , contract_terms, fulfillment_url, session_id)
  SELECT merchant_serial
       , make_order.order_id
       , decode(md5(random()::text), 'hex')
       , sha512(convert_to(make_order.order_id, 'UTF8'))
       , demo.microseconds(clock_timestamp() + interval '1 day')
       , demo.microseconds(clock_timestamp())
       , convert_to(json_build_object('order_id', make_order.order_id
                                    , 'amount', 'KUDOS:1'
                                    , 'summary', 'An article'
                                    , 'fulfillment_url', url)::text, 'UTF8')
       , url
       , session
    FROM merchant.merchant_instances
   WHERE merchant_id = instance;
  RETURN order_id;
END
$$;

CREATE OR REPLACE FUNCTION demo.claim_order(order_id text) RETURNS text
  LANGUAGE plpgsql AS
$$
BEGIN
  CALL demo.enter_schema_of_order(order_id);
  INSERT INTO merchant_contract_terms
    ( order_serial, merchant_serial, order_id, contract_terms, h_contract_terms, creation_time
    , pay_deadline, refund_deadline, fulfillment_url, session_id, claim_token)
  SELECT order_serial, merchant_serial, offer.order_id, contract_terms, sha512(contract_terms), creation_time
       , pay_deadline, pay_deadline, fulfillment_url, session_id, claim_token
    FROM merchant_orders AS offer
   WHERE offer.order_id = claim_order.order_id
  ON CONFLICT DO NOTHING;
  RETURN order_id;
END
$$;

CREATE OR REPLACE FUNCTION demo.pay_order(order_id text) RETURNS text
  LANGUAGE plpgsql AS
$$
BEGIN
  PERFORM demo.claim_order(order_id);
  DELETE FROM merchant_orders AS offer
   WHERE offer.order_id = pay_order.order_id;
  UPDATE merchant_contract_terms AS contract
     SET paid = true
   WHERE contract.order_id = pay_order.order_id;
  RETURN order_id;
END
$$;

CALL demo.split_instance('admin');
CALL demo.split_instance('shop');
DROP TABLE merchant.merchant_orders, merchant.merchant_contract_terms;

COMMIT;
