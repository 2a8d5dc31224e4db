/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "sandbox.h"

#include <fcntl.h>
#include <libpq-fe.h>
#include <linux/landlock.h>
#include <pwd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Rights of later versions of Landlock, for older kernel headers. */
#ifndef LANDLOCK_ACCESS_FS_REFER
#define LANDLOCK_ACCESS_FS_REFER (1ULL << 13)
#endif
#ifndef LANDLOCK_ACCESS_FS_TRUNCATE
#define LANDLOCK_ACCESS_FS_TRUNCATE (1ULL << 14)
#endif

/* What version 1 of Landlock can forbid: all rights from EXECUTE to MAKE_SYM. */
#define SANDBOX_RIGHTS_1 (LANDLOCK_ACCESS_FS_MAKE_SYM * 2 - 1)
#define SANDBOX_READ     (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
/* What a rule for a file can allow; the others are for directories. */
#define SANDBOX_FILE_RIGHTS LANDLOCK_ACCESS_FS_READ_FILE

/* Directories of libraries, certificates and the resolver's configuration. Secrets in them are
 * protected by their own permissions. */
static const char *const sandbox_system[] = {
    "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/usr", "/var/lib/sss"};

/* What libpq reads in the home directory. */
static const char *const sandbox_home[] = {".postgresql", ".pgpass", ".pg_service.conf"};

/* What names files in a conninfo. */
static const char *const sandbox_keywords[] = {
    "passfile", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslcrldir"};

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static uint64_t sandbox_rights(long version)
{
    uint64_t rights = SANDBOX_RIGHTS_1;

    if (version >= 2)
        rights |= LANDLOCK_ACCESS_FS_REFER;
    if (version >= 3)
        rights |= LANDLOCK_ACCESS_FS_TRUNCATE;
    return rights;
}

/* A path that is not there needs no rule. */
static void sandbox_allow(int rules, const char *path, uint64_t rights)
{
    struct landlock_path_beneath_attr beneath = {
        .allowed_access = rights,
        .parent_fd = open(path, O_PATH | O_CLOEXEC),
    };
    struct stat status;

    if (beneath.parent_fd < 0)
        return;
    if (fstat(beneath.parent_fd, &status) == 0) {
        if (!S_ISDIR(status.st_mode))
            beneath.allowed_access &= SANDBOX_FILE_RIGHTS;
        syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0);
    }
    close(beneath.parent_fd);
}

static const char *sandbox_home_directory(void)
{
    const char *home = getenv("HOME");
    const struct passwd *account = home ? NULL : getpwuid(geteuid());

    return account ? account->pw_dir : home;
}

static void sandbox_allow_home(int rules)
{
    const char *home = sandbox_home_directory();
    char path[4096];

    for (size_t i = 0; home && i < COUNT(sandbox_home); i++)
        if (snprintf(path, sizeof path, "%s/%s", home, sandbox_home[i]) < (int)sizeof path)
            sandbox_allow(rules, path, SANDBOX_READ);
}

static void sandbox_allow_conninfo(int rules, PQconninfoOption *conninfo)
{
    for (PQconninfoOption *option = conninfo; option && option->keyword; option++)
        for (size_t i = 0; i < COUNT(sandbox_keywords); i++)
            if (option->val && strcmp(option->keyword, sandbox_keywords[i]) == 0)
                sandbox_allow(rules, option->val, SANDBOX_READ);
    PQconninfoFree(conninfo);
}

/* Without a pool this process removes its socket at its end. */
static void sandbox_allow_socket(int rules, const struct options *options)
{
    char *directory, *slash;

    if (options->workers > 0 || !options->listen || !strchr(options->listen, '/'))
        return;
    directory = strdup(options->listen);
    if (!directory)
        return;
    slash = strrchr(directory, '/');
    slash[slash == directory] = '\0';
    sandbox_allow(rules, directory, LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_READ_DIR);
    free(directory);
}

static int sandbox_make_rules(uint64_t rights, const struct options *options)
{
    struct landlock_ruleset_attr attributes = {.handled_access_fs = rights};
    int rules = (int)syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes, 0);
    const char *service_file = getenv("PGSERVICEFILE");

    if (rules < 0)
        return -1;
    for (size_t i = 0; i < COUNT(sandbox_system); i++)
        sandbox_allow(rules, sandbox_system[i], SANDBOX_READ);
    sandbox_allow_home(rules);
    if (service_file)
        sandbox_allow(rules, service_file, SANDBOX_READ);
    sandbox_allow_conninfo(rules, PQconndefaults());
    if (options->database)
        sandbox_allow_conninfo(rules, PQconninfoParse(options->database, NULL));
    sandbox_allow_socket(rules, options);
    return rules;
}

static bool sandbox_restrict_files(const struct options *options)
{
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    int rules = version >= 1 ? sandbox_make_rules(sandbox_rights(version), options) : -1;
    bool restricted = rules >= 0 && syscall(SYS_landlock_restrict_self, rules, 0) == 0;

    if (rules >= 0)
        close(rules);
    return restricted;
}

struct sandbox sandbox_enter(const struct options *options)
{
    struct sandbox sandbox = {0};

    sandbox.no_new_privileges = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
    sandbox.undumpable = prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0;
    sandbox.files = sandbox.no_new_privileges && sandbox_restrict_files(options);
    return sandbox;
}

void sandbox_print(const struct sandbox *sandbox, char text[SANDBOX_TEXT_SIZE])
{
    snprintf(text, SANDBOX_TEXT_SIZE,
        "sandbox: new privileges %s, core files %s, writing and starting files %s",
        sandbox->no_new_privileges ? "off" : "on", sandbox->undumpable ? "off" : "on",
        sandbox->files ? "off" : "on (the kernel has no Landlock)");
}
