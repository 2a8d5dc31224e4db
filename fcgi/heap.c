/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "heap.h"

#include <stdlib.h>

static void put(struct heap *heap, size_t place, struct heap_node *node)
{
    heap->nodes[place - 1] = node;
    node->place = place;
}

static struct heap_node *at(const struct heap *heap, size_t place)
{
    return heap->nodes[place - 1];
}

static void sift_up(struct heap *heap, struct heap_node *node)
{
    size_t place = node->place;

    while (place > 1 && node->due < at(heap, place / 2)->due) {
        put(heap, place, at(heap, place / 2));
        place /= 2;
    }
    put(heap, place, node);
}

static void sift_down(struct heap *heap, struct heap_node *node)
{
    size_t place = node->place;

    for (;;) {
        size_t child = place * 2;

        if (child > heap->count)
            break;
        if (child < heap->count && at(heap, child + 1)->due < at(heap, child)->due)
            child++;
        if (node->due <= at(heap, child)->due)
            break;
        put(heap, place, at(heap, child));
        place = child;
    }
    put(heap, place, node);
}

bool heap_add(struct heap *heap, struct heap_node *node, usec_t due)
{
    if (heap->count == heap->room) {
        size_t room = heap->room ? heap->room * 2 : 64;
        struct heap_node **nodes = reallocarray(heap->nodes, room, sizeof(*nodes));

        if (!nodes)
            return false;
        heap->nodes = nodes;
        heap->room = room;
    }
    node->due = due;
    put(heap, ++heap->count, node);
    sift_up(heap, node);
    return true;
}

void heap_move(struct heap *heap, struct heap_node *node, usec_t due)
{
    node->due = due;
    sift_up(heap, node);
    sift_down(heap, node);
}

void heap_remove(struct heap *heap, struct heap_node *node)
{
    size_t place = node->place;
    struct heap_node *last;

    if (place == 0)
        return;
    last = at(heap, heap->count--);
    if (last != node) {
        put(heap, place, last);
        heap_move(heap, last, last->due);
    }
    node->place = 0;
}

struct heap_node *heap_first(const struct heap *heap)
{
    return heap->count ? heap->nodes[0] : NULL;
}

void heap_free(struct heap *heap)
{
    free(heap->nodes);
    *heap = (struct heap){0};
}
