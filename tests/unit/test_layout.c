/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "rows.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "../columns.h"
#include "layout.h"

/* Of a row of sql/layout.sql. */
enum { FIELDS = 8 };

/* What may be wrong with a column: the fields after the first three say that it is not so. */
enum flaw_kind { ABSENT, UNREADABLE, UNINDEXED, UNTRACKED };

/* What is wrong with which columns: those of a table that have this name, or all (NULL). */
struct flaw {
    enum flaw_kind kind;
    const char *table, *name;
};

static bool has_flaw(
    const struct flaw *flaws, size_t count, enum flaw_kind kind, const struct column *column)
{
    for (size_t i = 0; i < count; i++)
        if (flaws[i].kind == kind && strcmp(flaws[i].table, column->table) == 0 &&
            (!flaws[i].name || strcmp(flaws[i].name, column->name) == 0))
            return true;
    return false;
}

static bool read_layout(struct layout *layout, const struct flaw *flaws, size_t count)
{
    PGresult *rows = rows_new(FIELDS);
    bool readable;

    for (size_t i = 0; i < COUNT_OF(columns); i++) {
        const char *values[FIELDS] = {"merchant", columns[i].table, columns[i].name};

        for (enum flaw_kind kind = ABSENT; kind <= UNTRACKED; kind++)
            values[3 + kind] = has_flaw(flaws, count, kind, &columns[i]) ? "f" : "t";
        values[FIELDS - 1] = "1234";
        rows_add(rows, values);
    }
    readable = layout_read(rows, layout);
    PQclear(rows);
    return readable;
}

/* Reads the rows of a database with one flaw. */
static bool read_with(
    struct layout *layout, enum flaw_kind kind, const char *table, const char *name)
{
    const struct flaw flaw = {kind, table, name};

    return read_layout(layout, &flaw, 1);
}

static void test_database_in_order(void **state)
{
    struct layout layout;

    (void)state;
    assert_true(read_layout(&layout, NULL, 0));
    assert_string_equal(layout.schema, "merchant");
    assert_string_equal(layout.problem, "");
    assert_false(layout.per_instance);
    assert_true(layout.tables.finds_unclaimed);
    assert_true(layout.tables.has_serial);
    assert_true(layout.tables.claimed_indexed);
    assert_true(layout.tables.unclaimed_indexed);
    assert_true(layout.tables.tracked);
    assert_int_equal(layout.backend, 1234);
}

static void test_absent_column_is_named(void **state)
{
    struct layout layout;

    (void)state;
    assert_false(read_with(&layout, ABSENT, "merchant_contract_terms", "paid"));
    assert_string_equal(
        layout.problem, "column merchant.merchant_contract_terms.paid is not there");
}

static void test_unreadable_column_is_named(void **state)
{
    struct layout layout;

    (void)state;
    assert_false(read_with(&layout, UNREADABLE, "merchant_instances", "merchant_id"));
    assert_string_equal(layout.problem, "column merchant.merchant_instances.merchant_id may not be "
                                        "read by this role; run sql/role.sql");
}

/* As of 2022: merchant_orders is not read then, so this role need not be allowed to. */
static void test_orders_without_a_session_are_not_needed(void **state)
{
    const struct flaw flaws[] = {{ABSENT, "merchant_orders", "session_id"},
        {ABSENT, "merchant_orders", "fulfillment_url"}, {UNREADABLE, "merchant_orders", NULL}};
    struct layout layout;

    (void)state;
    assert_true(read_layout(&layout, flaws, COUNT_OF(flaws)));
    assert_false(layout.tables.finds_unclaimed);
}

static void test_layout_without_orders_is_unknown(void **state)
{
    struct layout layout;

    (void)state;
    assert_false(read_with(&layout, ABSENT, "merchant_orders", NULL));
    assert_string_equal(layout.problem, "column merchant.merchant_orders.order_id is not there");
}

static void test_instances_alone_mean_a_schema_for_each(void **state)
{
    const struct flaw flaws[] = {
        {ABSENT, "merchant_contract_terms", NULL}, {ABSENT, "merchant_orders", NULL}};
    struct layout layout;

    (void)state;
    assert_true(read_layout(&layout, flaws, COUNT_OF(flaws)));
    assert_true(layout.per_instance);
}

static void test_instances_that_may_not_be_read_are_a_problem(void **state)
{
    const struct flaw flaws[] = {{ABSENT, "merchant_contract_terms", NULL},
        {ABSENT, "merchant_orders", NULL}, {UNREADABLE, "merchant_instances", "merchant_serial"}};
    struct layout layout;

    (void)state;
    assert_false(read_layout(&layout, flaws, COUNT_OF(flaws)));
    assert_non_null(strstr(layout.problem, "merchant.merchant_instances.merchant_serial"));
}

static void test_each_table_has_its_index(void **state)
{
    struct layout layout;

    (void)state;
    assert_true(read_with(&layout, UNINDEXED, "merchant_orders", NULL));
    assert_true(layout.tables.claimed_indexed);
    assert_false(layout.tables.unclaimed_indexed);
    assert_true(read_with(&layout, UNINDEXED, "merchant_contract_terms", NULL));
    assert_false(layout.tables.claimed_indexed);
    assert_true(layout.tables.unclaimed_indexed);
}

static void test_one_untracked_table_is_enough(void **state)
{
    struct layout layout;

    (void)state;
    assert_true(read_with(&layout, UNTRACKED, "merchant_instances", NULL));
    assert_false(layout.tables.tracked);
}

static void test_catalogue_without_an_answer(void **state)
{
    const char *const values[] = {"merchant", "merchant_instances", "merchant_id"};
    PGresult *none = rows_new(FIELDS), *narrow = rows_new(3);
    struct layout layout;

    (void)state;
    assert_false(layout_read(none, &layout));
    assert_string_equal(layout.problem, "the catalogue did not answer");
    rows_add(narrow, values);
    assert_false(layout_read(narrow, &layout));
    assert_string_equal(layout.problem, "the catalogue did not answer");
    PQclear(none);
    PQclear(narrow);
}

static void test_statement_follows_the_orders(void **state)
{
    const struct layout_tables indexed = {.finds_unclaimed = true, .unclaimed_indexed = true};
    const struct layout_tables unindexed = {.finds_unclaimed = true};
    const struct layout_tables without_session = {0};

    (void)state;
    assert_non_null(strstr(layout_lookup(&indexed), "merchant_orders"));
    assert_null(strstr(layout_lookup(&indexed), "MATERIALIZED"));
    assert_non_null(strstr(layout_lookup(&unindexed), "MATERIALIZED"));
    assert_null(strstr(layout_lookup(&without_session), "merchant_orders"));
}

/* The statement for one schema. The caller frees it. */
static char *statement(enum session_question question, bool has_serial, const char *quoted)
{
    const struct layout_tables tables = {
        .finds_unclaimed = true, .unclaimed_indexed = true, .has_serial = has_serial};
    char *text = layout_make_statement(question, &tables, quoted, 42);

    assert_non_null(text);
    assert_null(strstr(text, "merchant_instances"));
    assert_null(strstr(text, "FROM merchant_"));
    return text;
}

static void test_statement_names_the_schema(void **state)
{
    char *text = statement(QUESTION_EVERYTHING, true, "\"m-42\"");

    (void)state;
    assert_non_null(strstr(text, "\"m-42\".merchant_orders"));
    assert_non_null(strstr(text, "\"m-42\".merchant_contract_terms"));
    assert_non_null(strstr(text, "42::bigint AS merchant_serial"));
    free(text);
}

static void test_statement_without_serial(void **state)
{
    char *text = statement(QUESTION_EVERYTHING, false, "m");

    (void)state;
    assert_null(strstr(text, "merchant_serial"));
    free(text);
}

static void test_statement_about_payment_reads_contracts_alone(void **state)
{
    char *text = statement(QUESTION_PAYMENT, true, "m");

    (void)state;
    assert_null(strstr(text, "merchant_orders"));
    assert_non_null(strstr(text, "m.merchant_contract_terms"));
    free(text);
}

/* A schema's name may look like a mark of the texts: it is not looked at again. */
static void test_name_is_not_taken_for_a_mark(void **state)
{
    static const char name[] = "\"/*end*/ /*schema*/ /*serial*/ %s\"";
    char *text = statement(QUESTION_EVERYTHING, false, name);

    (void)state;
    assert_non_null(strstr(text, "\"/*end*/ /*schema*/ /*serial*/ %s\".merchant_orders"));
    free(text);
}

static void test_same_statements(void **state)
{
    const struct layout_tables tables = {.has_serial = true};
    struct layout_tables other = tables;

    (void)state;
    other.claimed_indexed = other.tracked = true;
    assert_true(layout_same_statements(&tables, &other));
    other.finds_unclaimed = true;
    assert_false(layout_same_statements(&tables, &other));
    other = (struct layout_tables){0};
    assert_false(layout_same_statements(&tables, &other));
    other = (struct layout_tables){.has_serial = true, .unclaimed_indexed = true};
    assert_false(layout_same_statements(&tables, &other));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_database_in_order),
        cmocka_unit_test(test_absent_column_is_named),
        cmocka_unit_test(test_unreadable_column_is_named),
        cmocka_unit_test(test_orders_without_a_session_are_not_needed),
        cmocka_unit_test(test_layout_without_orders_is_unknown),
        cmocka_unit_test(test_instances_alone_mean_a_schema_for_each),
        cmocka_unit_test(test_instances_that_may_not_be_read_are_a_problem),
        cmocka_unit_test(test_each_table_has_its_index),
        cmocka_unit_test(test_one_untracked_table_is_enough),
        cmocka_unit_test(test_catalogue_without_an_answer),
        cmocka_unit_test(test_statement_follows_the_orders),
        cmocka_unit_test(test_statement_names_the_schema),
        cmocka_unit_test(test_statement_without_serial),
        cmocka_unit_test(test_statement_about_payment_reads_contracts_alone),
        cmocka_unit_test(test_name_is_not_taken_for_a_mark),
        cmocka_unit_test(test_same_statements),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
