/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "plan.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <string.h>

/* The nodes that search orders, as found so far. */
struct plan_searches {
    bool indexed, whole, foreign;
};

static bool plan_mentions(const cJSON *node, const char *property, const char *column)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(node, property));

    return text && strstr(text, column);
}

/* A search of orders is a node with a condition on session_id. Above a bitmap of an index there is
 * another node, which repeats the condition. */
static void plan_judge_node(const cJSON *node, struct plan_searches *searches)
{
    const char *type = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(node, "Node Type"));

    if (plan_mentions(node, "Index Cond", "session_id") &&
        plan_mentions(node, "Index Cond", "fulfillment_url"))
        searches->indexed = true;
    else if (plan_mentions(node, "Index Cond", "session_id") ||
             plan_mentions(node, "Filter", "session_id"))
        searches->whole = true;
    if (type && strcmp(type, "Foreign Scan") == 0)
        searches->foreign = true;
}

static void plan_judge_tree(const cJSON *node, struct plan_searches *searches)
{
    const cJSON *children = cJSON_GetObjectItemCaseSensitive(node, "Plans");

    plan_judge_node(node, searches);
    for (const cJSON *child = children ? children->child : NULL; child; child = child->next)
        plan_judge_tree(child, searches);
}

enum plan_verdict plan_judge(const char *json)
{
    cJSON *plans = cJSON_Parse(json);
    struct plan_searches searches = {0};

    plan_judge_tree(
        cJSON_GetObjectItemCaseSensitive(cJSON_GetArrayItem(plans, 0), "Plan"), &searches);
    cJSON_Delete(plans);
    if (searches.foreign)
        return PLAN_FOREIGN;
    if (searches.whole)
        return PLAN_WHOLE;
    return searches.indexed ? PLAN_INDEXED : PLAN_UNKNOWN;
}
