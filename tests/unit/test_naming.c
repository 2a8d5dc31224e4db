/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "naming.h"

static const struct naming_instance shop = {"shop", "2"}, cafe = {"cafe", "3"},
                                    admin = {"admin", "1"}, odd = {"shop-2.x@y", "12"};

static void assert_name(
    const char *pattern, const struct naming_instance *instance, const char *name)
{
    char made[NAMING_SCHEMA_SIZE];

    assert_true(naming_expand(pattern, instance, made));
    assert_string_equal(made, name);
}

static void test_pattern_stands_for_itself_but_for_id_and_serial(void **state)
{
    (void)state;
    assert_name("m_{serial}", &shop, "m_2");
    assert_name("{id}", &odd, "shop-2.x@y");
    assert_name("{id}{serial}{id}", &cafe, "cafe3cafe");
    assert_name("Ein \"Laden\" %s's; {ID} {{id}} {serial", &shop,
        "Ein \"Laden\" %s's; {ID} {shop} {serial");
    assert_true(naming_is_pattern("a{id}"));
    assert_true(naming_is_pattern("{serial}b"));
    assert_false(naming_is_pattern("{Id}"));
    assert_false(naming_is_pattern(""));
}

static void test_id_with_a_placeholder_in_it_is_not_expanded_again(void **state)
{
    const struct naming_instance hostile = {"{serial}", "7"};

    (void)state;
    assert_name("m_{id}", &hostile, "m_{serial}");
}

static void test_too_long_a_name_is_no_name(void **state)
{
    char id[NAMING_SCHEMA_SIZE + 1], made[NAMING_SCHEMA_SIZE];
    const struct naming_instance instance = {id, "1"};

    (void)state;
    memset(id, 'a', sizeof id);
    id[NAMING_SCHEMA_SIZE - 1] = '\0';
    assert_name("{id}", &instance, id);
    assert_false(naming_expand("{id}b", &instance, made));
    assert_false(naming_expand("{serial}{id}", &instance, made));
    id[NAMING_SCHEMA_SIZE - 1] = 'a';
    id[NAMING_SCHEMA_SIZE] = '\0';
    assert_false(naming_expand("{id}", &instance, made));
    id[0] = '\0';
    assert_false(naming_expand("{id}", &instance, made));
}

static enum naming_result find(const struct naming_instance *instances, size_t instance_count,
    const char *const *schemas, size_t schema_count, char pattern[NAMING_PATTERN_SIZE])
{
    pattern[0] = '\0';
    return naming_find(instances, instance_count, schemas, schema_count, pattern);
}

#define FIND(instances, schemas, pattern)                              \
    find(instances, sizeof(instances) / sizeof(instances)[0], schemas, \
        sizeof(schemas) / sizeof(schemas)[0], pattern)

#define ASSERT_FOUND(instances, schemas, wanted)                           \
    do {                                                                   \
        char pattern[NAMING_PATTERN_SIZE];                                 \
                                                                           \
        assert_int_equal(FIND(instances, schemas, pattern), NAMING_FOUND); \
        assert_string_equal(pattern, wanted);                              \
    } while (0)

#define ASSERT_NOT_FOUND(instances, schemas, why)                 \
    do {                                                          \
        char pattern[NAMING_PATTERN_SIZE];                        \
                                                                  \
        assert_int_equal(FIND(instances, schemas, pattern), why); \
    } while (0)

static void test_a_common_prefix_and_the_serial_or_the_id(void **state)
{
    const struct naming_instance all[] = {admin, shop, odd};
    const char *const by_serial[] = {
        "merchant_instance_1", "merchant_instance_12", "merchant_instance_2"};
    const char *const by_id[] = {"M \"%admin", "M \"%shop", "M \"%shop-2.x@y"};
    const char *const by_id_alone[] = {"admin", "shop", "shop-2.x@y"};
    const char *const by_serial_alone[] = {"1", "12", "2"};

    (void)state;
    ASSERT_FOUND(all, by_serial, "merchant_instance_{serial}");
    ASSERT_FOUND(all, by_id, "M \"%{id}");
    ASSERT_FOUND(all, by_id_alone, "{id}");
    ASSERT_FOUND(all, by_serial_alone, "{serial}");
}

static void test_one_instance_without_a_schema_or_one_schema_too_many(void **state)
{
    const struct naming_instance all[] = {admin, shop, cafe};
    const char *const one_missing[] = {"m1", "m3"};
    const char *const one_more[] = {"m1", "m2", "m3", "old"};
    const char *const both[] = {"m1", "m2", "old"};

    (void)state;
    ASSERT_FOUND(all, one_missing, "m{serial}");
    ASSERT_FOUND(all, one_more, "m{serial}");
    ASSERT_NOT_FOUND(all, both, NAMING_NONE);
}

static void test_two_rules_are_not_guessed_between(void **state)
{
    const struct naming_instance numbers[] = {{"1", "1"}, {"2", "2"}};
    const struct naming_instance crossed[] = {{"1", "2"}, {"2", "1"}};
    const struct naming_instance one[] = {shop};
    const char *const m[] = {"m1", "m2"};
    const char *const copies[] = {"backup_2", "m_2"};

    (void)state;
    ASSERT_NOT_FOUND(numbers, m, NAMING_AMBIGUOUS);
    ASSERT_NOT_FOUND(crossed, m, NAMING_AMBIGUOUS);
    ASSERT_NOT_FOUND(one, copies, NAMING_AMBIGUOUS);
}

static void test_what_no_rule_explains(void **state)
{
    const struct naming_instance all[] = {admin, shop};
    const char *const suffix[] = {"1m", "2m"};
    const char *const placeholder[] = {"{id}1", "{id}2"};
    char made[NAMING_PATTERN_SIZE];

    (void)state;
    ASSERT_NOT_FOUND(all, suffix, NAMING_NONE);
    ASSERT_NOT_FOUND(all, placeholder, NAMING_NONE);
    assert_int_equal(find(all, 2, NULL, 0, made), NAMING_NONE);
    assert_int_equal(find(NULL, 0, suffix, 2, made), NAMING_NONE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pattern_stands_for_itself_but_for_id_and_serial),
        cmocka_unit_test(test_id_with_a_placeholder_in_it_is_not_expanded_again),
        cmocka_unit_test(test_too_long_a_name_is_no_name),
        cmocka_unit_test(test_a_common_prefix_and_the_serial_or_the_id),
        cmocka_unit_test(test_one_instance_without_a_schema_or_one_schema_too_many),
        cmocka_unit_test(test_two_rules_are_not_guessed_between),
        cmocka_unit_test(test_what_no_rule_explains),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
