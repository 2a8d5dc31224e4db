-- SPDX-License-Identifier: GPL-3.0-or-later
-- Has the plan of the lookup made anew. PostgreSQL itself does that only when somebody has run ANALYZE:
-- a plan from the day when a merchant's tables were empty could otherwise stay for months.
DISCARD PLANS
