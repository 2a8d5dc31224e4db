-- SPDX-License-Identifier: GPL-3.0-or-later
-- Whether the server is a standby, for --check.
SELECT pg_is_in_recovery()
