-- SPDX-License-Identifier: GPL-3.0-or-later
-- Where each instance has a schema of its own: the instances, and all schemas that have a merchant_contract_terms.
--
-- Of an instance: id and serial. Of a schema: its name; whether its tables have all columns that a lookup needs;
-- whether this role may read them; whether merchant_orders tells the session; whether the tables have merchant_serial;
-- whether an index begins with the columns of a key, in any order, in merchant_contract_terms and in merchant_orders;
-- whether changes.sql notices all changes (see layout.sql). The catalogue shows also what this role may not read.
--
-- The statement runs every few seconds, so it has to be quick with a thousand schemas: each step finds its rows by an
-- index of the catalogue, whatever the planner believes.
WITH
-- include columns.sql
, pair AS (
    SELECT n.nspname, has_schema_privilege(n.oid, 'USAGE') AS usable,
           c.oid AS contracts, c.serial, c.url, c.session, c.columns AS c_columns, c.readable AS c_readable,
           o.oid AS orders, o.serial AS o_serial, o.url AS o_url, o.session AS o_session, o.columns AS o_columns,
           o.readable AS o_readable, o.known AS o_known
    FROM pg_class t
    JOIN pg_namespace n ON n.oid = t.relnamespace
    CROSS JOIN LATERAL (
        SELECT t.oid, count(*) AS columns, bool_and(has_column_privilege(t.oid, attnum, 'SELECT')) AS readable,
               max(attnum) FILTER (WHERE attname = 'merchant_serial') AS serial,
               max(attnum) FILTER (WHERE attname = 'fulfillment_url') AS url,
               max(attnum) FILTER (WHERE attname = 'session_id') AS session
        FROM pg_attribute
        WHERE attrelid = t.oid AND attnum > 0 AND NOT attisdropped
          AND attname = ANY (ARRAY(SELECT col::name FROM wanted WHERE tab = 'merchant_contract_terms'))
    ) c
    CROSS JOIN LATERAL (
        SELECT max(u.oid) AS oid, count(*) AS columns,
               bool_and(has_column_privilege(u.oid, attnum, 'SELECT')) AS readable,
               max(attnum) FILTER (WHERE attname = 'merchant_serial') AS serial,
               max(attnum) FILTER (WHERE attname = 'fulfillment_url') AS url,
               max(attnum) FILTER (WHERE attname = 'session_id') AS session,
               bool_or(attname = 'order_id') AS known
        FROM pg_class u
        JOIN pg_attribute a ON a.attrelid = u.oid
        WHERE u.relname = 'merchant_orders' AND u.relnamespace = n.oid AND u.relkind IN ('r', 'p', 'v', 'm', 'f')
          AND attnum > 0 AND NOT attisdropped
          AND attname = ANY (ARRAY(SELECT col::name FROM wanted WHERE tab = 'merchant_orders'))
    ) o
    WHERE t.relname = 'merchant_contract_terms' AND t.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname !~ '^pg_'
), needed AS (
    SELECT count(*) FILTER (WHERE tab = 'merchant_contract_terms') AS contract_columns,
           count(*) FILTER (WHERE tab = 'merchant_orders') AS order_columns
    FROM wanted
    WHERE col <> 'merchant_serial'
)
SELECT NULL::text AS id, NULL::text AS serial, nspname::text AS schema,
       c_columns - (serial IS NOT NULL)::int = contract_columns AND o_known IS TRUE
           AND (o_url IS NULL OR o_session IS NULL
                OR o_columns - (o_serial IS NOT NULL)::int = order_columns AND (serial IS NULL OR o_serial IS NOT NULL)),
       usable AND c_readable AND (o_url IS NULL OR o_session IS NULL OR o_readable),
       o_url IS NOT NULL AND o_session IS NOT NULL,
       serial IS NOT NULL,
       EXISTS (SELECT FROM pg_index x
               WHERE x.indrelid = contracts AND x.indisvalid AND x.indpred IS NULL
                 AND (ARRAY[x.indkey[0], x.indkey[1]] @> ARRAY[url, session]
                      OR ARRAY[x.indkey[0], x.indkey[1], x.indkey[2]] @> ARRAY[serial, url, session])),
       EXISTS (SELECT FROM pg_index x
               WHERE x.indrelid = orders AND x.indisvalid AND x.indpred IS NULL
                 AND (ARRAY[x.indkey[0], x.indkey[1]] @> ARRAY[o_url, o_session]
                      OR ARRAY[x.indkey[0], x.indkey[1], x.indkey[2]] @> ARRAY[o_serial, o_url, o_session])),
       NOT EXISTS (WITH RECURSIVE part (oid) AS (
                       SELECT unnest(ARRAY[contracts, orders])
                       UNION ALL
                       SELECT h.inhrelid FROM pg_inherits h JOIN part ON h.inhparent = part.oid)
                   SELECT FROM part JOIN pg_class d USING (oid)
                   WHERE d.relkind NOT IN ('r', 'p'))
FROM pair, needed
UNION ALL
SELECT merchant_id::text, merchant_serial::text, NULL, false, false, false, false, false, false, false
FROM merchant_instances
