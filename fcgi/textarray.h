/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef TEXTARRAY_H
#define TEXTARRAY_H

#include <stdbool.h>
#include <stddef.h>

/*
 * A text[] in PostgreSQL's binary format, as a parameter of a statement: nothing in it is ever
 * quoted, or read as anything else than text. All zero is an array that has not been started; one
 * can be started again and again, and keeps its memory.
 */
struct text_array {
    char *at; /* the parameter's value, */
    size_t length, room;
    bool failed; /* out of memory: not to be used */
};

/* Starts an array that is going to have exactly count elements. */
void text_array_start(struct text_array *array, size_t count);

/* Adds an element, which is copied. */
void text_array_add(struct text_array *array, const char *text);

/* Frees its memory. */
void text_array_free(struct text_array *array);

#endif
