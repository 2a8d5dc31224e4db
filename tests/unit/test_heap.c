/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "unit.h"

#include "heap.h"

#define NODES 1000

MALLOC_MAY_FAIL

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

/* The node due first, found the slow way; nodes in no heap do not count. */
static usec_t least_due(const struct heap_node *nodes, size_t count)
{
    usec_t least = INT64_MAX;

    for (size_t i = 0; i < count; i++)
        if (nodes[i].place != 0 && nodes[i].due < least)
            least = nodes[i].due;
    return least;
}

/* Whatever is added, moved and removed: the first one is right, at every size that fills the array.
 */
static void test_random_operations(void **state)
{
    struct heap heap = {0};
    struct heap_node nodes[140] = {0};
    uint32_t seed = 1;

    (void)state;
    for (int round = 0; round < 50000; round++) {
        /* Growing and shrinking take turns. */
        bool growing = round / 500 % 2 == 0;
        struct heap_node *node = &nodes[scatter(&seed) % COUNT_OF(nodes)];
        usec_t due = scatter(&seed) % 200;

        if (node->place == 0 && growing)
            assert_true(heap_add(&heap, node, due));
        else if (node->place != 0 && (growing || scatter(&seed) % 2))
            heap_move(&heap, node, due);
        else
            heap_remove(&heap, node);
        if (heap.count == 0)
            assert_null(heap_first(&heap));
        else
            assert_true(heap_first(&heap)->due == least_due(nodes, COUNT_OF(nodes)));
    }
    heap_free(&heap);
}

/* Sinking looks at both children, of which the second may lie behind the end of a full array. */
static void test_full_array(void **state)
{
    struct heap heap = {0};
    struct heap_node nodes[128] = {0};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(nodes); i++) {
        assert_true(heap_add(&heap, &nodes[i], 0));
        for (size_t k = 0; k <= i; k++)
            heap_move(&heap, &nodes[k], 0);
    }
    heap_free(&heap);
}

static void test_used_again_after_free(void **state)
{
    struct heap heap = {0};
    struct heap_node node = {0}, other = {0};

    (void)state;
    assert_true(heap_add(&heap, &node, 1));
    heap_free(&heap);
    assert_null(heap_first(&heap));
    assert_true(heap_add(&heap, &other, 2));
    assert_ptr_equal(heap_first(&heap), &other);
    heap_free(&heap);
}

static void test_no_memory(void **state)
{
    /* Full, and too large to be doubled. */
    struct heap heap = {.count = SIZE_MAX / 32, .room = SIZE_MAX / 32};
    struct heap_node node = {0};

    (void)state;
    assert_false(heap_add(&heap, &node, 1));
    assert_int_equal(node.place, 0);
    assert_null(heap.nodes);
    assert_int_equal(heap.count, SIZE_MAX / 32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_comes_out_in_order),
        cmocka_unit_test(test_moved_nodes_come_out_in_order),
        cmocka_unit_test(test_removed_nodes_are_gone),
        cmocka_unit_test(test_random_operations),
        cmocka_unit_test(test_full_array),
        cmocka_unit_test(test_used_again_after_free),
        cmocka_unit_test(test_no_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
