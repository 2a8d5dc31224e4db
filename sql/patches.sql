-- SPDX-License-Identifier: GPL-3.0-or-later
-- The newest patch of the backend that was applied to this database; only reported, never relied upon.
SELECT max(patch_name) FROM _v.patches WHERE patch_name LIKE 'merchant-%'
