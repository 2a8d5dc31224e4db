-- SPDX-License-Identifier: GPL-3.0-or-later
-- What this role may do in this database beyond reading the columns of a lookup, for --check: a row for each thing, the
-- worst first. What everybody may do counts too, but for temporary tables.
WITH me AS (
    SELECT * FROM pg_roles WHERE rolname = current_user
),
-- include columns.sql
, place AS (
    SELECT n.oid, n.nspname, has_schema_privilege(n.oid, 'CREATE') AS writable
    FROM pg_namespace n
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND has_schema_privilege(n.oid, 'USAGE')
), tab AS (
    SELECT c.oid, c.relname, format('%I.%I', p.nspname, c.relname) AS name, c.relowner = me.oid AS owned,
           c.relrowsecurity AND c.relname IN (SELECT w.tab FROM wanted w) AS policed,
           has_table_privilege(c.oid, 'SELECT') AS readable,
           has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
               OR has_any_column_privilege(c.oid, 'INSERT, UPDATE, REFERENCES') AS writable
    FROM pg_class c
    JOIN place p ON p.oid = c.relnamespace
    CROSS JOIN me
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT me.rolsuper
), beyond (place, what) AS (
    SELECT 1, 'is a superuser' FROM me WHERE rolsuper
    UNION ALL
    SELECT 2, w.what
    FROM me
    CROSS JOIN LATERAL (VALUES (rolcreaterole, 'may create roles'),
                               (rolcreatedb, 'may create databases'),
                               (rolreplication, 'may replicate'),
                               (rolbypassrls AND NOT EXISTS (SELECT FROM tab WHERE policed), 'ignores row-level security'),
                               (has_database_privilege(current_database(), 'CREATE'), 'may create schemas')) w (so, what)
    WHERE w.so AND NOT rolsuper
    UNION ALL
    SELECT 3, format('is a member of %I', r.rolname)
    FROM pg_roles r
    CROSS JOIN me
    WHERE r.oid <> me.oid AND pg_has_role(r.oid, 'MEMBER') AND NOT me.rolsuper
    UNION ALL
    SELECT 4, format('may create in schema %I', p.nspname) FROM place p CROSS JOIN me WHERE p.writable AND NOT me.rolsuper
    UNION ALL
    SELECT 5, CASE WHEN owned THEN 'owns ' ELSE 'may change ' END || name FROM tab WHERE owned OR writable
    UNION ALL
    SELECT 6, 'may read all of ' || name FROM tab WHERE readable AND NOT owned AND name <> '_v.patches'
    UNION ALL
    SELECT 7, format('may read %s.%I', t.name, a.attname)
    FROM tab t
    JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attacl IS NOT NULL
    WHERE NOT t.readable AND NOT t.owned AND has_column_privilege(t.oid, a.attnum, 'SELECT')
      AND (t.relname, a.attname) NOT IN (SELECT w.tab, w.col FROM wanted w)
)
SELECT what FROM beyond ORDER BY place, what
