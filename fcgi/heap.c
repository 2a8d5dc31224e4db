/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "heap.h"

#include <stdlib.h>

static void heap_put(struct heap *heap, size_t place, struct heap_node *node)
{
    heap->nodes[place - 1] = node;
    node->place = place;
}

static struct heap_node *heap_at(const struct heap *heap, size_t place)
{
    return heap->nodes[place - 1];
}

static void heap_sift_up(struct heap *heap, struct heap_node *node)
{
    size_t place = node->place;

    while (place > 1 && node->due < heap_at(heap, place / 2)->due) {
        heap_put(heap, place, heap_at(heap, place / 2));
        place /= 2;
    }
    heap_put(heap, place, node);
}

static void heap_sift_down(struct heap *heap, struct heap_node *node)
{
    size_t place = node->place;

    for (;;) {
        size_t child = place * 2;

        if (child > heap->count)
            break;
        if (child < heap->count && heap_at(heap, child + 1)->due < heap_at(heap, child)->due)
            child++;
        if (node->due <= heap_at(heap, child)->due)
            break;
        heap_put(heap, place, heap_at(heap, child));
        place = child;
    }
    heap_put(heap, place, node);
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
    heap_put(heap, ++heap->count, node);
    heap_sift_up(heap, node);
    return true;
}

void heap_move(struct heap *heap, struct heap_node *node, usec_t due)
{
    node->due = due;
    heap_sift_up(heap, node);
    heap_sift_down(heap, node);
}

void heap_remove(struct heap *heap, struct heap_node *node)
{
    size_t place = node->place;
    struct heap_node *last;

    if (place == 0)
        return;
    last = heap_at(heap, heap->count--);
    if (last != node) {
        heap_put(heap, place, last);
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
