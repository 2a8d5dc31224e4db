-- SPDX-License-Identifier: GPL-3.0-or-later
--
-- The role for merchant-sessions: it may log in, and read the columns that a lookup needs, and nothing else.
-- To be run by the owner of the merchant's tables, as often as you like:
--
--     psql -d taler-merchant -f sql/role.sql
--     psql -d taler-merchant -v role=another-name -f sql/role.sql
--
-- Where each instance has a schema of its own it has to be run again after a new instance was made. It grants only what
-- is missing: if nothing is, it writes nothing.
--
-- An owner who may not create roles has the superuser create this one before.

\set ON_ERROR_STOP on
\set QUIET on
\if :{?role}
\else
  \set role merchant-sessions
\endif

BEGIN;

SELECT n.nspname AS schema
     , to_regclass(format('%I.merchant_contract_terms', n.nspname)) IS NULL AS per_instance
  FROM pg_namespace n
 WHERE n.nspname IN ('merchant', 'public')
   AND to_regclass(format('%I.merchant_instances', n.nspname)) IS NOT NULL
 ORDER BY n.nspname
 LIMIT 1 \gset

\if :{?schema}
\else
  DO $$ BEGIN
    RAISE 'no table merchant_instances in schema merchant or public'
      USING hint = 'Is this the database of the merchant, and are you the owner of its tables?';
  END $$;
\endif

-- Since 2026 each instance has a schema of its own: all that have both tables count, whatever their names.
SELECT array_agg(nspname::text) AS schemas, count(*) - 1 AS number
  FROM pg_namespace
 WHERE nspname = :'schema'
    OR (:'per_instance' AND nspname !~ '^pg_'
        AND to_regclass(format('%I.merchant_contract_terms', nspname)) IS NOT NULL
        AND to_regclass(format('%I.merchant_orders', nspname)) IS NOT NULL) \gset

SELECT format('CREATE ROLE %I LOGIN', :'role')
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec

SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), :'role')
 WHERE NOT has_database_privilege(:'role', current_database(), 'CONNECT') \gexec

SELECT format('GRANT USAGE ON SCHEMA %I TO %I', wanted, :'role')
  FROM unnest(:'schemas'::text[]) AS wanted
 WHERE NOT has_schema_privilege(:'role', wanted, 'USAGE') \gexec

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
 WHERE table_schema = ANY (:'schemas'::text[])
   AND NOT has_column_privilege(:'role', format('%I.%I', table_schema, table_name), column_name::text, 'SELECT')
 GROUP BY table_schema, table_name \gexec

SELECT unnest(ARRAY[ format('GRANT USAGE ON SCHEMA _v TO %I', :'role')
                   , format('GRANT SELECT ON _v.patches TO %I', :'role')])
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = '_v'
   AND c.relname = 'patches'
   AND NOT (has_schema_privilege(:'role', n.oid, 'USAGE') AND has_table_privilege(:'role', c.oid, 'SELECT')) \gexec

COMMIT;

\if :per_instance
  \echo Role :role may read the columns of a lookup in schema :schema and in those of :number instances.
\else
  \echo Role :role may read the columns of a lookup in schema :schema.
\endif
