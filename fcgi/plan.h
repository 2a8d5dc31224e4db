/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef PLAN_H
#define PLAN_H

/* How PostgreSQL would run a lookup. */
enum plan_verdict {
    PLAN_INDEXED, /* orders are found by an index that has session and URL */
    PLAN_WHOLE,   /* more is read than the orders that match */
    PLAN_FOREIGN, /* a foreign server finds them: its plan is not visible */
    PLAN_UNKNOWN, /* the text is no such plan */
};

/* Judges the text that EXPLAIN (FORMAT JSON) has returned for a statement of sql/keys.sql. */
enum plan_verdict plan_judge(const char *json);

#endif
