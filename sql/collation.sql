-- SPDX-License-Identifier: GPL-3.0-or-later
-- Whether the operating system sorts text in another way than when the database was made, for --check: then a row, with the
-- version of then and that of now. PostgreSQL 15 and later.
SELECT datcollversion, pg_database_collation_actual_version(oid)
FROM pg_database
WHERE datname = current_database() AND datcollversion <> pg_database_collation_actual_version(oid)
