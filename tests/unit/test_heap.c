/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "unit.h"

#include "heap.h"

#define NODES 1000

/* A fixed sequence that looks random. */
static usec_t scattered(size_t i)
{
    return (usec_t)(i * 7919 % 1009);
}

static void fill(struct heap *heap, struct heap_node *nodes)
{
    for (size_t i = 0; i < NODES; i++)
        assert_true(heap_add(heap, &nodes[i], scattered(i)));
}

/* Empties the heap, checking the order; returns how many nodes it had. */
static size_t drain(struct heap *heap)
{
    usec_t last = -1;
    size_t count = 0;

    for (struct heap_node *node; (node = heap_first(heap)); count++) {
        assert_true(node->due >= last);
        last = node->due;
        heap_remove(heap, node);
        assert_int_equal(node->place, 0);
    }
    return count;
}

static void test_empty(void **state)
{
    struct heap heap = {0};
    struct heap_node node = {0};

    (void)state;
    assert_null(heap_first(&heap));
    heap_remove(&heap, &node);
    assert_null(heap_first(&heap));
}

static void test_comes_out_in_order(void **state)
{
    struct heap heap = {0};
    struct heap_node nodes[NODES] = {0};

    (void)state;
    fill(&heap, nodes);
    assert_int_equal(drain(&heap), NODES);
    heap_free(&heap);
}

static void test_moved_nodes_come_out_in_order(void **state)
{
    struct heap heap = {0};
    struct heap_node nodes[NODES] = {0};

    (void)state;
    fill(&heap, nodes);
    for (size_t i = 0; i < NODES; i += 3)
        heap_move(&heap, &nodes[i], scattered(i * 31 + 5));
    heap_move(&heap, &nodes[500], -1);
    assert_ptr_equal(heap_first(&heap), &nodes[500]);
    heap_move(&heap, &nodes[500], 10000);
    assert_int_equal(drain(&heap), NODES);
    heap_free(&heap);
}

static void test_removed_nodes_are_gone(void **state)
{
    struct heap heap = {0};
    struct heap_node nodes[NODES] = {0};

    (void)state;
    fill(&heap, nodes);
    for (size_t i = 0; i < NODES; i += 2)
        heap_remove(&heap, &nodes[i]);
    for (size_t i = 0; i < NODES; i += 2)
        assert_int_equal(nodes[i].place, 0);
    assert_int_equal(drain(&heap), NODES / 2);
    heap_free(&heap);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_comes_out_in_order),
        cmocka_unit_test(test_moved_nodes_come_out_in_order),
        cmocka_unit_test(test_removed_nodes_are_gone),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
