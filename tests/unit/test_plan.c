/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "unit.h"

#include "plan.h"

/* Plans as PostgreSQL 15 prints them, shortened. */
#define PLAN(node)  "[{\"Plan\": {\"Node Type\": \"Nested Loop\", \"Plans\": [" node "]}}]"
#define INDEX(cond) "{\"Node Type\": \"Index Scan\", \"Index Cond\": \"" cond "\"}"
#define KEY         "((fulfillment_url = k.url) AND (session_id >= k.session))"
#define BITMAP(child) \
    "{\"Node Type\": \"Bitmap Heap Scan\", \"Recheck Cond\": \"" KEY "\", \"Plans\": [" child "]}"

static void test_plans(void **state)
{
    static const struct {
        const char *json;
        enum plan_verdict verdict;
    } cases[] = {
        {PLAN(INDEX(KEY)), PLAN_INDEXED},
        {PLAN(BITMAP(INDEX(KEY))), PLAN_INDEXED},
        {PLAN(INDEX("(merchant_id = k.instance)") "," INDEX(KEY)), PLAN_INDEXED},
        {PLAN(INDEX("(session_id >= k.session)")), PLAN_WHOLE},
        {PLAN(INDEX(KEY) ",{\"Node Type\": \"Seq Scan\", \"Filter\": \"" KEY "\"}"), PLAN_WHOLE},
        {PLAN("{\"Node Type\": \"Index Scan\", \"Index Cond\": \"(fulfillment_url = k.url)\","
              "\"Filter\": \"(session_id >= k.session)\"}"),
            PLAN_WHOLE},
        {PLAN("{\"Node Type\": \"Foreign Scan\", \"Filter\": \"(session_id >= k.session)\"}"),
            PLAN_FOREIGN},
        {PLAN("{\"Node Type\": \"Seq Scan\", \"Filter\": \"(merchant_id = k.instance)\"}"),
            PLAN_UNKNOWN},
        {PLAN("{\"Node Type\": 7, \"Index Cond\": [], \"Filter\": null, \"Plans\": {}}"),
            PLAN_UNKNOWN},
        {"[]", PLAN_UNKNOWN},
        {"{\"Plan\": {}}", PLAN_UNKNOWN},
        {"Index Scan", PLAN_UNKNOWN},
        {"", PLAN_UNKNOWN},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        if (plan_judge(cases[i].json) != cases[i].verdict)
            fail_msg("plan %zu: %s", i, cases[i].json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plans),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
