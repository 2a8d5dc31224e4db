/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "rows.h"

#include <stdio.h>
#include <stdlib.h>

#include "instances.h"

#define FIELDS 10

/* A row of sql/instances.sql: of an instance, if it has an id, else of a schema that is in order
 * but for what is said. */
struct row {
    const char *id, *serial, *schema;
    bool incomplete, unreadable, has_serial, unindexed, untracked;
};

static PGresult *make_rows(const struct row *all, size_t count)
{
    PGresult *rows = rows_new(FIELDS);

    for (size_t i = 0; i < count; i++) {
        const struct row *row = &all[i];
        const char *const values[FIELDS] = {row->id, row->serial, row->schema,
            row->incomplete ? "f" : "t", row->unreadable ? "f" : "t", "t",
            row->has_serial ? "t" : "f", row->unindexed ? "f" : "t", row->unindexed ? "f" : "t",
            row->untracked ? "f" : "t"};

        rows_add(rows, values);
    }
    return rows;
}

#define READ(instances, all, gone) \
    instances_read(instances, make_rows(all, sizeof(all) / sizeof(all)[0]), gone)

static struct instances *new_instances(const char *pattern)
{
    struct instances *instances = instances_new(pattern);

    assert_non_null(instances);
    return instances;
}

static void assert_schema(struct instances *instances, const char *id, const char *name)
{
    struct instance_schema *schema = instances_find(instances, id);

    assert_non_null(schema);
    assert_string_equal(schema->name, name);
}

static void test_each_instance_has_the_schema_of_the_rule(void **state)
{
    const struct row all[] = {{.schema = "m_2"}, {.id = "shop", .serial = "2"},
        {.id = "admin", .serial = "1"}, {.schema = "m_1"}};
    struct instances *instances = new_instances(NULL);
    bool gone;

    (void)state;
    assert_true(READ(instances, all, &gone));
    assert_false(gone);
    assert_schema(instances, "shop", "m_2");
    assert_schema(instances, "admin", "m_1");
    assert_schema(instances, "", "m_1");
    assert_null(instances_find(instances, "Shop"));
    assert_int_equal(instances_find(instances, "shop")->serial, 2);
    assert_non_null(strstr(instances_rule(instances), "\"m_{serial}\""));
    assert_int_equal(instances_summary(instances).instances, 2);
    instances_free(instances);
}

static void test_default_is_served_where_there_is_no_admin(void **state)
{
    const struct row all[] = {{.schema = "m_1"}, {.id = "default", .serial = "1"}};
    struct instances *instances = new_instances("m_{serial}");
    bool gone;

    (void)state;
    assert_true(READ(instances, all, &gone));
    assert_schema(instances, "", "m_1");
    assert_null(instances_find(instances, "admin"));
    instances_free(instances);
}

static void test_faults_are_of_one_schema_alone(void **state)
{
    const struct row all[] = {{.schema = "m_1"}, {.schema = "m_2", .incomplete = true},
        {.schema = "m_3", .unreadable = true}, {.schema = "m_5", .unindexed = true},
        {.id = "a", .serial = "1"}, {.id = "b", .serial = "2"}, {.id = "c", .serial = "3"},
        {.id = "d", .serial = "4"}, {.id = "e", .serial = "5"}};
    struct instances *instances = new_instances("m_{serial}");
    bool gone;

    (void)state;
    assert_true(READ(instances, all, &gone));
    assert_int_equal(instances_find(instances, "a")->fault, SCHEMA_FINE);
    assert_int_equal(instances_find(instances, "b")->fault, SCHEMA_INCOMPLETE);
    assert_int_equal(instances_find(instances, "c")->fault, SCHEMA_UNREADABLE);
    assert_int_equal(instances_find(instances, "d")->fault, SCHEMA_MISSING);
    assert_schema(instances, "d", "m_4");
    assert_int_equal(instances_find(instances, "e")->fault, SCHEMA_FINE);
    assert_int_equal(instances_summary(instances).claimed_unindexed, 1);
    assert_true(instances_tracked(instances));
    instances_free(instances);
}

static void test_instances_that_share_a_schema_are_not_served(void **state)
{
    const struct row all[] = {{.schema = "m_7"}, {.schema = "m_8"}, {.id = "a", .serial = "7"},
        {.id = "b", .serial = "7"}, {.id = "c", .serial = "8"}};
    struct instances *instances = new_instances("m_{serial}");
    bool gone;

    (void)state;
    assert_true(READ(instances, all, &gone));
    assert_int_equal(instances_find(instances, "a")->fault, SCHEMA_SHARED);
    assert_int_equal(instances_find(instances, "b")->fault, SCHEMA_SHARED);
    assert_int_equal(instances_find(instances, "c")->fault, SCHEMA_FINE);
    instances_free(instances);
}

static void test_too_long_a_name_is_missing(void **state)
{
    const struct row all[] = {
        {.schema = "m"}, {.id = "a", .serial = "1"}, {.id = "b", .serial = "2"}};
    struct instances *instances = new_instances(
        "a pattern of more than sixty-three bytes, which PostgreSQL would cut short {id}");
    bool gone;

    (void)state;
    assert_true(READ(instances, all, &gone));
    assert_int_equal(instances_find(instances, "a")->fault, SCHEMA_MISSING);
    assert_int_equal(instances_find(instances, "b")->fault, SCHEMA_MISSING);
    instances_free(instances);
}

static void test_what_is_known_of_a_schema_is_kept(void **state)
{
    const struct row before[] = {{.schema = "m_a", .has_serial = true}, {.id = "a", .serial = "1"}};
    const struct row after[] = {{.schema = "m_a", .has_serial = true},
        {.schema = "m_b", .has_serial = true}, {.id = "a", .serial = "1"},
        {.id = "b", .serial = "2"}};
    const struct row again[] = {{.schema = "m_a", .has_serial = true}, {.id = "a", .serial = "3"}};
    struct instances *instances = new_instances("m_{id}");
    struct instance_schema *schema;
    bool gone;

    (void)state;
    assert_true(READ(instances, before, &gone));
    schema = instances_find(instances, "a");
    schema->statements[QUESTION_PAYMENT] = 7;
    schema->prepared_serial = 1;
    schema->failures = 2;
    schema->rests_until = 99;
    assert_true(READ(instances, after, &gone));
    assert_false(gone);
    schema = instances_find(instances, "a");
    assert_int_equal(schema->statements[QUESTION_PAYMENT], 7);
    assert_int_equal(schema->failures, 2);
    assert_int_equal(schema->rests_until, 99);
    assert_false(schema->stale);
    assert_ptr_equal(instances_least_used(instances), schema);
    /* The same id and schema, but another instance: its statements are of another serial. */
    assert_true(READ(instances, again, &gone));
    assert_true(gone);
    schema = instances_find(instances, "a");
    assert_int_equal(schema->statements[QUESTION_PAYMENT], 7);
    assert_true(schema->stale);
    instances_disconnected(instances);
    assert_int_equal(instances_prepared(instances), 0);
    assert_false(schema->stale);
    instances_free(instances);
}

static void test_statements_of_a_schema_that_has_gone_are_to_be_deallocated(void **state)
{
    const struct row before[] = {{.schema = "m_1"}, {.schema = "m_2"}, {.id = "a", .serial = "1"},
        {.id = "b", .serial = "2"}};
    const struct row after[] = {{.schema = "m_2"}, {.id = "b", .serial = "2"}};
    struct instances *instances = new_instances("m_{serial}");
    struct instance_schema *schema;
    bool gone;

    (void)state;
    assert_true(READ(instances, before, &gone));
    schema = instances_find(instances, "a");
    schema->statements[QUESTION_EVERYTHING] = 5;
    assert_true(READ(instances, after, &gone));
    assert_true(gone);
    assert_null(instances_find(instances, "a"));
    assert_int_equal(instances_prepared(instances), 1);
    schema = instances_next_schema(instances, NULL);
    assert_string_equal(schema->name, "m_1");
    assert_true(schema->stale);
    /* Once they are, it is forgotten. */
    schema->statements[QUESTION_EVERYTHING] = 0;
    assert_true(READ(instances, after, &gone));
    assert_string_equal(instances_next_schema(instances, NULL)->name, "m_2");
    instances_free(instances);
}

static void test_what_was_mended_is_asked_at_once(void **state)
{
    const struct row before[] = {{.schema = "m_1", .unreadable = true}, {.id = "a", .serial = "1"}};
    const struct row after[] = {{.schema = "m_1"}, {.id = "a", .serial = "1"}};
    struct instances *instances = new_instances("m_{serial}");
    struct instance_schema *schema;
    bool gone;

    (void)state;
    assert_true(READ(instances, before, &gone));
    schema = instances_find(instances, "a");
    schema->failures = 5;
    schema->rests_until = 99;
    assert_true(READ(instances, after, &gone));
    schema = instances_find(instances, "a");
    assert_int_equal(schema->fault, SCHEMA_FINE);
    assert_int_equal(schema->failures, 0);
    assert_int_equal(schema->rests_until, 0);
    instances_free(instances);
}

static void test_a_rule_that_was_found_stays_until_the_connection_is_lost(void **state)
{
    const struct row before[] = {{.schema = "m_1"}, {.schema = "m_2"}, {.id = "a", .serial = "1"},
        {.id = "b", .serial = "2"}};
    const struct row after[] = {{.schema = "n_1"}, {.schema = "n_2"}, {.id = "a", .serial = "1"},
        {.id = "b", .serial = "2"}};
    struct instances *instances = new_instances(NULL);
    bool gone;

    (void)state;
    assert_true(READ(instances, before, &gone));
    assert_true(READ(instances, after, &gone));
    assert_int_equal(instances_find(instances, "a")->fault, SCHEMA_MISSING);
    instances_disconnected(instances);
    assert_true(READ(instances, after, &gone));
    assert_schema(instances, "a", "n_1");
    instances_free(instances);
}

static void test_without_a_rule_the_problem_names_schemas(void **state)
{
    const struct row none[] = {{.schema = "x"}, {.schema = "y"}, {.id = "a", .serial = "1"}};
    const struct row several[] = {{.schema = "m1"}, {.id = "1", .serial = "1"}};
    const struct row no_schema[] = {{.id = "a", .serial = "1"}};
    const struct row no_instance[] = {{.schema = "x"}};
    struct instances *instances = new_instances(NULL);
    bool gone;

    (void)state;
    assert_false(READ(instances, none, &gone));
    assert_non_null(strstr(instances_problem(instances), "no rule"));
    assert_non_null(strstr(instances_problem(instances), "\"x\" \"y\""));
    assert_non_null(strstr(instances_problem(instances), "--instance-schema"));
    assert_false(READ(instances, several, &gone));
    assert_non_null(strstr(instances_problem(instances), "several rules"));
    assert_false(READ(instances, no_schema, &gone));
    assert_non_null(strstr(instances_problem(instances), "merchant_contract_terms"));
    assert_true(READ(instances, no_instance, &gone));
    assert_null(instances_find(instances, "a"));
    instances_free(instances);
}

static void test_rows_of_another_shape_are_refused(void **state)
{
    struct instances *instances = new_instances(NULL);
    bool gone;

    (void)state;
    assert_false(instances_read(instances, PQmakeEmptyPGresult(NULL, PGRES_TUPLES_OK), &gone));
    assert_string_not_equal(instances_problem(instances), "");
    instances_free(instances);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_instance_has_the_schema_of_the_rule),
        cmocka_unit_test(test_default_is_served_where_there_is_no_admin),
        cmocka_unit_test(test_faults_are_of_one_schema_alone),
        cmocka_unit_test(test_instances_that_share_a_schema_are_not_served),
        cmocka_unit_test(test_too_long_a_name_is_missing),
        cmocka_unit_test(test_what_is_known_of_a_schema_is_kept),
        cmocka_unit_test(test_statements_of_a_schema_that_has_gone_are_to_be_deallocated),
        cmocka_unit_test(test_what_was_mended_is_asked_at_once),
        cmocka_unit_test(test_a_rule_that_was_found_stays_until_the_connection_is_lost),
        cmocka_unit_test(test_without_a_rule_the_problem_names_schemas),
        cmocka_unit_test(test_rows_of_another_shape_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
