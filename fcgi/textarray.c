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

/* The head is what PostgreSQL's array_recv() reads: dimensions, whether there are NULLs, type, and
 * for the one dimension its length and its first index. */
void text_array_start(struct text_array *array, size_t count)
{
    const uint32_t head[] = {
        htonl(1), htonl(0), htonl(TYPE_TEXT), htonl((uint32_t)count), htonl(1)};

    array->length = 0;
    array->failed = false;
    text_array_put_bytes(array, head, sizeof head);
}

void text_array_add(struct text_array *array, const char *text)
{
    const size_t length = strlen(text);
    const uint32_t wire = htonl((uint32_t)length);

    text_array_put_bytes(array, &wire, sizeof wire);
    text_array_put_bytes(array, text, length);
}

void text_array_free(struct text_array *array)
{
    free(array->at);
    *array = (struct text_array){0};
}
