-- SPDX-License-Identifier: GPL-3.0-or-later
-- Only the keys with a claimed order: what matters to a request that waits is whether a wallet has claimed the order
-- and whether it is paid. Columns are those of keys.sql. There is no row for any other key.
-- include lookup-claimed.sql
WHERE c.order_id IS NOT NULL
