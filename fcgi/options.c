/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <sysexits.h>
#include <unistd.h>

#include "conninfo.h"
#include "naming.h"
#include "version.h"

#define ENVIRONMENT "MERCHANT_SESSIONS_"

/* Values for getopt_long() of options without a letter. */
enum {
    OPTION_INSTANCE_SCHEMA = UCHAR_MAX + 1,
    OPTION_SOCKET_MODE,
    OPTION_POLL_INTERVAL,
    OPTION_MAX_WAIT,
    OPTION_MAX_WAITING,
    OPTION_DB_TIMEOUT,
    OPTION_ALLOW_ROOT,
    OPTION_NO_SANDBOX,
    OPTION_CHECK
};

static const char options_usage[] =
    "Usage: merchant-sessions.fcgi [options]\n"
    "Answers over FastCGI whether sessions of a GNU Taler merchant are paid.\n"
    "\n"
    "  -d, --database CONNINFO  libpq connection string or URI (libpq's variables)\n"
    "      --instance-schema PATTERN\n"
    "                           name of an instance's schema, where each has one,\n"
    "                           with {id} or {serial} in it (found by itself)\n"
    "  -w, --workers N          worker processes; 0: serve in this process\n"
    "                           (number of processors)\n"
    "  -l, --listen ADDRESS     a path, HOST:PORT or :PORT (socket on descriptor 0)\n"
    "      --socket-mode MODE   permissions of a --listen path, octal (0660)\n"
    "      --poll-interval MS   time between checks for changes (25)\n"
    "      --max-wait MS        upper limit of timeout_ms (50000)\n"
    "      --max-waiting N      waiting requests per worker (8192)\n"
    "      --db-timeout MS      time limit of the database's answer (2000)\n"
    "      --allow-root         serve although the user is root\n"
    "      --no-sandbox         let workers keep rights that they do not need\n"
    "      --check              check the set-up and the database, then exit\n"
    "  -v, --verbose            log more\n"
    "  -V, --version            print the version\n"
    "  -h, --help               print this text\n"
    "\n"
    "Defaults are in parentheses. Each option is an environment variable too, such as\n"
    "MERCHANT_SESSIONS_POLL_INTERVAL. The command line takes precedence.\n";

static const struct option options_long[] = {
    {"database", required_argument, NULL, 'd'},
    {"instance-schema", required_argument, NULL, OPTION_INSTANCE_SCHEMA},
    {"workers", required_argument, NULL, 'w'},
    {"listen", required_argument, NULL, 'l'},
    {"socket-mode", required_argument, NULL, OPTION_SOCKET_MODE},
    {"poll-interval", required_argument, NULL, OPTION_POLL_INTERVAL},
    {"max-wait", required_argument, NULL, OPTION_MAX_WAIT},
    {"max-waiting", required_argument, NULL, OPTION_MAX_WAITING},
    {"db-timeout", required_argument, NULL, OPTION_DB_TIMEOUT},
    {"allow-root", no_argument, NULL, OPTION_ALLOW_ROOT},
    {"no-sandbox", no_argument, NULL, OPTION_NO_SANDBOX},
    {"check", no_argument, NULL, OPTION_CHECK},
    {"verbose", no_argument, NULL, 'v'},
    {"version", no_argument, NULL, 'V'},
    {"help", no_argument, NULL, 'h'},
    {0},
};

static _Noreturn void options_refuse(const char *name, const char *value, const char *wanted)
{
    fprintf(stderr, "merchant-sessions: %s: '%s' is not %s\n", name, value, wanted);
    exit(EX_USAGE);
}

static long options_read_number(const char *name, const char *text, int base, long low, long high)
{
    char *end, wanted[80];
    long value;

    errno = 0;
    value = strtol(text, &end, base);
    if (errno == 0 && end != text && *end == '\0' && value >= low && value <= high &&
        strspn(text, "0123456789") == strlen(text))
        return value;
    snprintf(wanted, sizeof wanted,
        base == 8 ? "an octal number from 0%lo to 0%lo" : "a number from %ld to %ld", low, high);
    options_refuse(name, text, wanted);
}

static int options_read_int(const char *name, const char *text, long low, long high)
{
    return (int)options_read_number(name, text, 10, low, high);
}

static bool options_read_flag(const char *name, const char *text)
{
    /* The option has no argument; its variable is 1 or 0. */
    return text ? options_read_int(name, text, 0, 1) : true;
}

static const char *options_read_conninfo(const char *name, const char *text)
{
    switch (conninfo_judge(text)) {
    case CONNINFO_SOUND:
        break;
    case CONNINFO_MALFORMED:
        /* The value is not printed: it may hold a password. */
        fprintf(stderr, "merchant-sessions: %s: not a libpq connection string or URI\n", name);
        exit(EX_USAGE);
    case CONNINFO_NO_MEMORY:
        fprintf(stderr, "merchant-sessions: %s: out of memory\n", name);
        exit(EXIT_FAILURE);
    }
    return text;
}

/* An address with a slash is a path. */
static const char *options_read_address(const char *name, const char *text)
{
    const char *colon = strrchr(text, ':');

    if (strlen(text) >= sizeof((struct sockaddr_un *)NULL)->sun_path)
        options_refuse(name, text, "short enough for the path of a socket");
    if (strchr(text, '/'))
        return text;
    if (!colon)
        options_refuse(name, text, "a path with a slash, HOST:PORT or :PORT");
    options_read_number(name, colon + 1, 10, 1, 65535);
    return text;
}

static const char *options_read_pattern(const char *name, const char *text)
{
    if (!naming_is_pattern(text))
        options_refuse(name, text, "a pattern with {id} or {serial} in it");
    return text;
}

/* Sets one option. name is the option or the variable as the operator wrote it. */
static void options_set(struct options *options, int option, const char *name, const char *value)
{
    switch (option) {
    case 'd':
        options->database = options_read_conninfo(name, value);
        break;
    case OPTION_INSTANCE_SCHEMA:
        options->instance_schema = options_read_pattern(name, value);
        break;
    case 'w':
        options->workers = options_read_int(name, value, 0, 1024);
        break;
    case 'l':
        options->listen = options_read_address(name, value);
        break;
    case OPTION_SOCKET_MODE:
        options->socket_mode = (mode_t)options_read_number(name, value, 8, 0, 0777);
        break;
    case OPTION_POLL_INTERVAL:
        options->poll_interval_ms = options_read_int(name, value, 10, 60 * 1000);
        break;
    case OPTION_MAX_WAIT:
        options->max_wait_ms = options_read_int(name, value, 0, 24 * 60 * 60 * 1000);
        break;
    case OPTION_MAX_WAITING:
        options->max_waiting = options_read_int(name, value, 0, 1000 * 1000);
        break;
    case OPTION_DB_TIMEOUT:
        options->db_timeout_ms = options_read_int(name, value, 10, 60 * 1000);
        break;
    case OPTION_ALLOW_ROOT:
        options->allow_root = options_read_flag(name, value);
        break;
    case OPTION_NO_SANDBOX:
        options->no_sandbox = options_read_flag(name, value);
        break;
    case OPTION_CHECK:
        options->check = options_read_flag(name, value);
        break;
    default:
        options->verbose = options_read_flag(name, value);
        break;
    }
}

/* MERCHANT_SESSIONS_POLL_INTERVAL for poll-interval. */
static void options_make_variable_name(const char *option, char *name, size_t size)
{
    snprintf(name, size, ENVIRONMENT "%s", option);
    for (char *c = name; *c; c++)
        if (*c == '-')
            *c = '_';
        else if (*c >= 'a' && *c <= 'z')
            *c = (char)(*c - 'a' + 'A');
}

static void options_read_environment(struct options *options)
{
    for (const struct option *option = options_long; option->name; option++) {
        char name[64];
        const char *value;

        if (option->val == 'V' || option->val == 'h')
            continue;
        options_make_variable_name(option->name, name, sizeof name);
        value = getenv(name);
        if (value && *value)
            options_set(options, option->val, name, value);
    }
}

static const char *options_long_name(int letter, char name[32])
{
    const struct option *option = options_long;

    while (option->val != letter)
        option++;
    snprintf(name, 32, "--%s", option->name);
    return name;
}

/* Every user can read a command line. A connection string in it that holds a password is
 * overwritten and put into the environment, which only the same user and root can read. */
static void options_hide_password(struct options *options, char *conninfo)
{
    static const char variable[] = ENVIRONMENT "DATABASE";

    if (!conninfo_has_password(conninfo))
        return;
    if (setenv(variable, conninfo, 1) != 0) {
        fputs("merchant-sessions: --database: out of memory\n", stderr);
        exit(EXIT_FAILURE);
    }
    options->database = getenv(variable);
    memset(conninfo, 'x', strlen(conninfo));
}

static void options_read_command_line(struct options *options, int argc, char *argv[])
{
    char name[32];
    int letter;

    while ((letter = getopt_long(argc, argv, "d:w:l:vVh", options_long, NULL)) != -1) {
        switch (letter) {
        case 'V':
            puts("merchant-sessions " VERSION);
            exit(EXIT_SUCCESS);
        case 'h':
            fputs(options_usage, stdout);
            exit(EXIT_SUCCESS);
        case '?':
            exit(EX_USAGE);
        default:
            options_set(options, letter, options_long_name(letter, name), optarg);
            if (letter == 'd')
                options_hide_password(options, optarg);
        }
    }
    if (optind < argc)
        options_refuse("command line", argv[optind], "an option");
}

struct options options_read(int argc, char *argv[])
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    struct options options = {
        .workers = processors > 0 ? (int)processors : 1,
        .socket_mode = 0660,
        .poll_interval_ms = 25,
        .max_wait_ms = 50000,
        .max_waiting = 8192,
        .db_timeout_ms = 2000,
    };

    options_read_environment(&options);
    options_read_command_line(&options, argc, argv);
    return options;
}
