/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef HEAP_H
#define HEAP_H

#include <stdbool.h>
#include <stddef.h>

#include "clock.h"

/* A timer. Embed it in the object that it belongs to. */
struct heap_node {
    usec_t due;
    size_t place; /* in the heap's array, counted from 1; 0: in no heap */
};

/* A binary heap of timers; the one that is due first is on top. All zero is an empty heap. */
struct heap {
    struct heap_node **nodes;
    size_t count, room;
};

/* Adds a timer that is in no heap, due at the given time. False if out of memory. */
bool heap_add(struct heap *heap, struct heap_node *node, usec_t due);

/* Changes the time of a timer that is in this heap. */
void heap_move(struct heap *heap, struct heap_node *node, usec_t due);

/* Removes a timer; does nothing if it is in no heap. */
void heap_remove(struct heap *heap, struct heap_node *node);

/* The timer that is due first, NULL if there is none. It stays in the heap. */
struct heap_node *heap_first(const struct heap *heap);

/* Frees the heap's own memory; the nodes are their owners'. */
void heap_free(struct heap *heap);

#endif
