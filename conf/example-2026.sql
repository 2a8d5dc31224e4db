-- SPDX-License-Identifier: GPL-3.0-or-later
--
-- Makes of the database of example.sql one as merchants have it since 2026: each instance has a schema of its own for
-- its orders. How a merchant names the schemas is not known: merchant_instance_SERIAL is made up.

BEGIN;

CREATE OR REPLACE FUNCTION demo.schema_of(instance text) RETURNS text
  LANGUAGE sql AS
$$
  SELECT 'merchant_instance_' || merchant_serial
    FROM merchant.merchant_instances
   WHERE merchant_id = instance
$$;

CREATE OR REPLACE FUNCTION demo.schema_of_order(order_id text) RETURNS text
  LANGUAGE plpgsql AS
$$
DECLARE
  schema text;
  has_order boolean;
BEGIN
  FOR schema IN SELECT demo.schema_of(merchant_id) FROM merchant.merchant_instances LOOP
    EXECUTE format('SELECT EXISTS (SELECT FROM %1$I.merchant_orders WHERE order_id = $1)
                        OR EXISTS (SELECT FROM %1$I.merchant_contract_terms WHERE order_id = $1)', schema)
       INTO has_order USING order_id;
    EXIT WHEN has_order;
  END LOOP;
  -- Of an order that does not exist: any schema, where it is not found either.
  RETURN schema;
END
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

CALL demo.split_instance('admin');
CALL demo.split_instance('shop');
DROP TABLE merchant.merchant_orders, merchant.merchant_contract_terms;

COMMIT;
