/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef HEAP_H
#define HEAP_H

#include <stdbool.h>
#include <stddef.h>

#include "clock.h"

/* What is due at a time: embed it in the thing that is. */
struct heap_node {
    usec_t due;
    size_t place; /* in the heap's array, counted from 1; 0: in no heap */
};

/* A binary heap of nodes, the one due first on top. All zero is an empty heap. */
struct heap {
    struct heap_node **nodes;
    size_t count, room;
};

/* Puts a node that is in no heap into this one, due at the given time. False if out of memory. */
bool heap_add(struct heap *heap, struct heap_node *node, usec_t due);

/* Gives a node that is in this heap another time. */
void heap_move(struct heap *heap, struct heap_node *node, usec_t due);

/* Takes a node out; nothing happens if it is in no heap. */
void heap_remove(struct heap *heap, struct heap_node *node);

/* The node that is due first, NULL if there is none. It stays in the heap. */
struct heap_node *heap_first(const struct heap *heap);

/* Frees the heap's own memory; the nodes are their owners'. */
void heap_free(struct heap *heap);

#endif
