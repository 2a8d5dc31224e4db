/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "conninfo.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct conninfo_params conninfo_params(const char *conninfo, const struct conninfo_hosts *hosts)
{
    /* libpq takes the later of two values unless it is NULL, and expands dbname where it stands. */
    return (struct conninfo_params){
        .keywords = {"dbname", "host", "hostaddr", "port", "client_encoding",
            "fallback_application_name", NULL},
        .values = {conninfo, hosts->host, hosts->hostaddr, hosts->port, "UTF8", "merchant-sessions",
            NULL},
    };
}

static size_t conninfo_count(const char *list)
{
    size_t count = list && *list ? 1 : 0;

    for (; count > 0 && (list = strchr(list, ',')); list++)
        count++;
    return count;
}

/* Element n of a list, counted from 0; the list has that many. */
static const char *conninfo_element(const char *list, size_t n)
{
    for (; n > 0; n--)
        list = strchr(list, ',') + 1;
    return list;
}

static bool conninfo_element_is(const char *list, size_t n, const char *text)
{
    size_t length = strlen(text);
    const char *element;

    if (!list || n >= conninfo_count(list))
        return false;
    element = conninfo_element(list, n);
    return strncmp(element, text, length) == 0 && (element[length] == ',' || !element[length]);
}

/* Whether the connection is to host n. */
static bool conninfo_is_host(const struct conninfo_hosts *hosts, size_t n, const PGconn *connection)
{
    const char *host = PQhost(connection), *port = PQport(connection);

    if (!host || (!conninfo_element_is(hosts->host, n, host) &&
                     !conninfo_element_is(hosts->hostaddr, n, host)))
        return false;
    return conninfo_count(hosts->port) < 2 || !port || conninfo_element_is(hosts->port, n, port);
}

/* The lists of hosts that the connection was made with, from conninfo, environment or service
 * file. The strings belong to the options. */
static struct conninfo_hosts conninfo_find_hosts(PQconninfoOption *options)
{
    struct conninfo_hosts hosts = {0};

    for (PQconninfoOption *option = options; option->keyword; option++)
        if (strcmp(option->keyword, "host") == 0)
            hosts.host = option->val;
        else if (strcmp(option->keyword, "hostaddr") == 0)
            hosts.hostaddr = option->val;
        else if (strcmp(option->keyword, "port") == 0)
            hosts.port = option->val;
    return hosts;
}

/* A copy of a list without element n: first the elements after it, then those before it. A list
 * of one element holds for all hosts. *ok becomes false if out of memory. */
static char *conninfo_leave_out(const char *list, size_t n, bool *ok)
{
    size_t count = conninfo_count(list);
    const char *after = list;
    int before = 0; /* length of the elements before it */
    char *rest;

    /* libpq refuses a list of another length than the others, before it tries any host. */
    if (count == 0 || (count > 1 && n >= count))
        return NULL;
    if (count > 1) {
        const char *element = conninfo_element(list, n), *comma = strchr(element, ',');

        after = comma ? comma + 1 : "";
        before = n > 0 ? (int)(element - list - 1) : 0;
    }
    if (asprintf(&rest, "%s%s%.*s", after, *after && before > 0 ? "," : "", before, list) >= 0)
        return rest;
    *ok = false;
    return NULL;
}

struct conninfo_hosts conninfo_other_hosts(PGconn *connection)
{
    PQconninfoOption *options = PQconninfo(connection);
    struct conninfo_hosts all, others = {0};
    size_t count, n = 0;
    bool ok = true;

    if (!options)
        return others;
    all = conninfo_find_hosts(options);
    count = conninfo_count(all.host ? all.host : all.hostaddr);
    while (n < count && !conninfo_is_host(&all, n, connection))
        n++;
    if (count > 1) {
        others.host = conninfo_leave_out(all.host, n % count, &ok);
        others.hostaddr = conninfo_leave_out(all.hostaddr, n % count, &ok);
        others.port = conninfo_leave_out(all.port, n % count, &ok);
    }
    if (!ok)
        conninfo_free_hosts(&others);
    PQconninfoFree(options);
    return others;
}

void conninfo_free_hosts(struct conninfo_hosts *hosts)
{
    free(hosts->host);
    free(hosts->hostaddr);
    free(hosts->port);
    *hosts = (struct conninfo_hosts){0};
}

/* If out of memory libpq leaves the message NULL, or says so in it. */
static bool conninfo_lacks_memory(const char *message)
{
    static const char text[] = "out of memory";

    return !message || strncmp(message, text, strlen(text)) == 0;
}

enum conninfo_verdict conninfo_judge(const char *conninfo)
{
    char *message = NULL;
    PQconninfoOption *options = PQconninfoParse(conninfo, &message);
    enum conninfo_verdict verdict = CONNINFO_SOUND;

    if (!options)
        verdict = conninfo_lacks_memory(message) ? CONNINFO_NO_MEMORY : CONNINFO_MALFORMED;
    PQfreemem(message);
    PQconninfoFree(options);
    return verdict;
}

bool conninfo_has_password(const char *conninfo)
{
    PQconninfoOption *options = PQconninfoParse(conninfo, NULL);
    bool has = !options;

    for (PQconninfoOption *option = options; option && option->keyword; option++)
        has |= option->val && (strcmp(option->keyword, "password") == 0 ||
                                  strcmp(option->keyword, "sslpassword") == 0);
    PQconninfoFree(options);
    return has;
}
