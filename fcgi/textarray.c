/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "textarray.h"

#include <arpa/inet.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The type of the elements (PostgreSQL's pg_type.h, which clients don't have). */
#define TYPE_TEXT 25

static void text_array_put_bytes(struct text_array *array, const void *from, size_t length)
{
    if (array->failed)
        return;
    if (array->room - array->length < length) {
        size_t room = (array->length + length) * 2;
        char *grown = realloc(array->at, room);

        array->failed = !grown;
        if (!grown)
            return;
        array->at = grown;
        array->room = room;
    }
    memcpy(array->at + array->length, from, length);
    array->length += length;
}

static void text_array_put_int4(struct text_array *array, size_t value)
{
    uint32_t wire = htonl((uint32_t)value);

    text_array_put_bytes(array, &wire, sizeof wire);
}

/* The head is what PostgreSQL's array_recv() reads: dimensions, whether there are NULLs, type, and
 * for the one dimension its length and its first index. */
void text_array_start(struct text_array *array, size_t count)
{
    array->length = 0;
    array->failed = false;
    text_array_put_int4(array, 1);
    text_array_put_int4(array, 0);
    text_array_put_int4(array, TYPE_TEXT);
    text_array_put_int4(array, count);
    text_array_put_int4(array, 1);
}

void text_array_add(struct text_array *array, const char *text)
{
    size_t length = strlen(text);

    text_array_put_int4(array, length);
    text_array_put_bytes(array, text, length);
}

void text_array_free(struct text_array *array)
{
    free(array->at);
    *array = (struct text_array){0};
}
