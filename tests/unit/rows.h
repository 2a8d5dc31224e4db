/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef ROWS_H
#define ROWS_H

#include "unit.h"

#include <libpq-fe.h>
#include <string.h>

#define ROWS_FIELDS_MAX 16

/* A result of PostgreSQL without rows. Its fields have no names. */
static inline PGresult *rows_new(int fields)
{
    static char name[] = "";
    PGresAttDesc attributes[ROWS_FIELDS_MAX] = {0};
    PGresult *rows = PQmakeEmptyPGresult(NULL, PGRES_TUPLES_OK);

    assert_in_range(fields, 1, ROWS_FIELDS_MAX);
    for (int i = 0; i < fields; i++)
        attributes[i].name = name;
    assert_non_null(rows);
    assert_true(PQsetResultAttrs(rows, fields, attributes));
    return rows;
}

/* Adds a row with a text for each field; NULL is NULL. */
static inline void rows_add(PGresult *rows, const char *const values[])
{
    int row = PQntuples(rows);

    for (int field = 0; field < PQnfields(rows); field++) {
        const char *text = values[field];

        /* PQsetvalue() does not write to the text. */
        assert_true(
            PQsetvalue(rows, row, field, (char *)(uintptr_t)text, text ? (int)strlen(text) : -1));
    }
}

#endif
