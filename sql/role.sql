-- SPDX-License-Identifier: GPL-3.0-or-later
--
-- The role for merchant-sessions: it may log in, and read the columns that a lookup needs, and nothing else.
-- To be run by the owner of the merchant's tables, as often as you like:
--
--     psql -d taler-merchant -f sql/role.sql
--     psql -d taler-merchant -v role=another-name -f sql/role.sql
--
-- An owner who may not create roles has the superuser create this one before.

\set ON_ERROR_STOP on
\set QUIET on
\if :{?role}
\else
  \set role merchant-sessions
\endif

BEGIN;

SELECT min(table_schema::text) AS schema
  FROM information_schema.tables
 WHERE table_name = 'merchant_contract_terms'
   AND table_schema IN ('merchant', 'public') \gset

\if :{?schema}
\else
  DO $$ BEGIN
    RAISE 'no table merchant_contract_terms in schema merchant or public'
      USING hint = 'Is this the database of the merchant, and are you the owner of its tables?';
  END $$;
\endif

SELECT format('CREATE ROLE %I LOGIN', :'role')
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec

GRANT CONNECT ON DATABASE :"DBNAME" TO :"role";
GRANT USAGE ON SCHEMA :"schema" TO :"role";

-- Before 2023 merchant_orders had neither session_id nor fulfillment_url: grant what is there.
SELECT format('GRANT SELECT (%s) ON %I.%I TO %I',
              string_agg(quote_ident(column_name), ', ' ORDER BY ordinal_position), table_schema, table_name, :'role')
  FROM information_schema.columns
  JOIN (VALUES ('merchant_instances', 'merchant_serial')
             , ('merchant_instances', 'merchant_id')
             , ('merchant_contract_terms', 'order_serial')
             , ('merchant_contract_terms', 'merchant_serial')
             , ('merchant_contract_terms', 'order_id')
             , ('merchant_contract_terms', 'creation_time')
             , ('merchant_contract_terms', 'paid')
             , ('merchant_contract_terms', 'fulfillment_url')
             , ('merchant_contract_terms', 'session_id')
             , ('merchant_orders', 'order_serial')
             , ('merchant_orders', 'merchant_serial')
             , ('merchant_orders', 'order_id')
             , ('merchant_orders', 'creation_time')
             , ('merchant_orders', 'fulfillment_url')
             , ('merchant_orders', 'session_id')) AS lookup (table_name, column_name)
 USING (table_name, column_name)
 WHERE table_schema = :'schema'
 GROUP BY table_schema, table_name \gexec

SELECT unnest(ARRAY[ format('GRANT USAGE ON SCHEMA _v TO %I', :'role')
                   , format('GRANT SELECT ON _v.patches TO %I', :'role')])
  FROM information_schema.tables
 WHERE table_schema = '_v'
   AND table_name = 'patches' \gexec

COMMIT;

\echo Role :role may read the columns of a lookup in schema :schema.
