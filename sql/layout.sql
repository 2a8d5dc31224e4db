-- SPDX-License-Identifier: GPL-3.0-or-later
-- What the catalogue says of the tables that the lookup reads: a row for each column.
--
-- schema, table, column; whether it is there; whether this role may read it; whether an index of the
-- table begins with the three columns of a key, in any order; whether changes.sql notices all changes of
-- the table, which is not so for views and foreign tables, also as its partitions or children; which process of the
-- server answers, and that is another one than the client was told if there is a pooler between them. The
-- tables are looked for in the schema merchant, else in public, where merchant_instances is. If that is alone there,
-- each instance may have a schema of its own (see instances.sql).
WITH place AS (
    SELECT n.oid, n.nspname
    FROM pg_namespace n
    WHERE n.nspname IN ('merchant', 'public')
    ORDER BY EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid
                     AND c.relname = 'merchant_instances') DESC,
             n.nspname
    LIMIT 1
),
-- include columns.sql
SELECT p.nspname AS schema, w.tab, w.col,
       a.attnum IS NOT NULL AS present,
       coalesce(has_schema_privilege(p.oid, 'USAGE')
                AND has_column_privilege(c.oid, a.attnum, 'SELECT'), false) AS readable,
       EXISTS (SELECT FROM pg_index x
               WHERE x.indrelid = c.oid AND x.indisvalid AND x.indpred IS NULL
                 AND (SELECT array_agg(b.attname::text ORDER BY b.attname)
                      FROM unnest(x.indkey::int2[]) WITH ORDINALITY AS k (attnum, n)
                      JOIN pg_attribute b ON b.attrelid = c.oid AND b.attnum = k.attnum
                      WHERE k.n <= 3)
                     = '{fulfillment_url,merchant_serial,session_id}') AS indexed,
       NOT EXISTS (WITH RECURSIVE part (oid) AS (
                       SELECT c.oid
                       UNION ALL
                       SELECT h.inhrelid FROM pg_inherits h JOIN part ON h.inhparent = part.oid)
                   SELECT FROM part JOIN pg_class d USING (oid)
                   WHERE d.relkind NOT IN ('r', 'p')) AS tracked,
       pg_backend_pid() AS backend
FROM wanted w
LEFT JOIN place p ON true
LEFT JOIN pg_class c ON c.relnamespace = p.oid AND c.relname = w.tab AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = w.col AND a.attnum > 0
                        AND NOT a.attisdropped
ORDER BY w.place
