/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "fuzz.h"

#include <libpq-fe.h>
#include <setjmp.h>
#include <stdbool.h>
#include <sysexits.h>
#include <unistd.h>

#include "options.h"

/*
 * Oracle: a model of the command line and the environment, which knows from a table what each
 * option takes. It predicts the options, or the exit status and the name in the line that tells
 * why. A conninfo, which may hold a password, must leave no trace in that line. After an argument
 * as the input has it, of which the model knows nothing, only the ranges of the options are
 * checked.
 *
 * An input is a list of settings: a byte for the option, one for the way it is given, and a string
 * for the value.
 */

#define SETTINGS_MAX 12

enum kind {
    KIND_NUMBER,
    KIND_MODE,
    KIND_ADDRESS,
    KIND_CONNINFO,
    KIND_PATTERN,
    KIND_FLAG,
    KIND_END
};

static const struct rule {
    const char *name, *letter, *variable; /* NULL: it has none */
    enum kind kind;
    long low, high;
} rules[] = {
    {"--database", "-d", "MERCHANT_SESSIONS_DATABASE", KIND_CONNINFO, 0, 0},
    {"--instance-schema", NULL, "MERCHANT_SESSIONS_INSTANCE_SCHEMA", KIND_PATTERN, 0, 0},
    {"--workers", "-w", "MERCHANT_SESSIONS_WORKERS", KIND_NUMBER, 0, 1024},
    {"--listen", "-l", "MERCHANT_SESSIONS_LISTEN", KIND_ADDRESS, 0, 0},
    {"--socket-mode", NULL, "MERCHANT_SESSIONS_SOCKET_MODE", KIND_MODE, 0, 0777},
    {"--poll-interval", NULL, "MERCHANT_SESSIONS_POLL_INTERVAL", KIND_NUMBER, 10, 60000},
    {"--max-wait", NULL, "MERCHANT_SESSIONS_MAX_WAIT", KIND_NUMBER, 0, 86400000},
    {"--max-waiting", NULL, "MERCHANT_SESSIONS_MAX_WAITING", KIND_NUMBER, 0, 1000000},
    {"--db-timeout", NULL, "MERCHANT_SESSIONS_DB_TIMEOUT", KIND_NUMBER, 10, 60000},
    {"--allow-root", NULL, "MERCHANT_SESSIONS_ALLOW_ROOT", KIND_FLAG, 0, 1},
    {"--no-sandbox", NULL, "MERCHANT_SESSIONS_NO_SANDBOX", KIND_FLAG, 0, 1},
    {"--check", NULL, "MERCHANT_SESSIONS_CHECK", KIND_FLAG, 0, 1},
    {"--verbose", "-v", "MERCHANT_SESSIONS_VERBOSE", KIND_FLAG, 0, 1},
    {"--version", "-V", NULL, KIND_END, 0, 0},
    {"--help", "-h", NULL, KIND_END, 0, 0},
};

/* Places in the table. */
enum {
    DATABASE,
    INSTANCE_SCHEMA,
    WORKERS,
    LISTEN,
    SOCKET_MODE,
    POLL_INTERVAL,
    MAX_WAIT,
    MAX_WAITING,
    DB_TIMEOUT
};
enum { ALLOW_ROOT = DB_TIMEOUT + 1, NO_SANDBOX, CHECK_FLAG, VERBOSE, RULES };

/* How a setting is given. */
enum way { WAY_VARIABLE, WAY_WORDS, WAY_EQUALS, WAY_LETTER, WAY_RAW, WAYS };

struct setting {
    const struct rule *rule;
    enum way way;
    char *value;
};

/* A command line and an environment made of settings. */
struct call {
    struct setting settings[SETTINGS_MAX];
    size_t count;
    char *argv[2 * SETTINGS_MAX + 2], *environment[SETTINGS_MAX + 1];
    int argc;
    size_t variables;
};

struct model {
    bool known;          /* false: there was something that it cannot predict */
    int status;          /* of exit(); -1: the options are read */
    const char *name;    /* what is refused */
    bool secret;         /* its value must not be printed */
    long numbers[RULES]; /* -1: not given */
    const char *database, *listen, *instance_schema;
};

/* What options_read() did. */
struct outcome {
    int status; /* of exit(); -1: it returned */
    struct options options;
    char *output; /* on standard error */
};

static jmp_buf at_exit;
static bool reading;
static int exit_status;

_Noreturn void __real_exit(int status);
_Noreturn void __wrap_exit(int status);

/* The linker puts this in place of exit(), which options_read() calls. */
_Noreturn void __wrap_exit(int status)
{
    if (!reading)
        __real_exit(status);
    exit_status = status;
    longjmp(at_exit, 1);
}

/* The number of a value, -1 if it is none or beyond the range. */
static long model_number(const char *value, unsigned base, long low, long high)
{
    long number = 0;

    if (!*value)
        return -1;
    for (; *value; value++) {
        unsigned digit = (unsigned)*value - '0';

        if (digit >= base)
            return -1;
        number = number * (long)base + (long)digit;
        if (number > high)
            number = high + 1;
    }
    return number >= low && number <= high ? number : -1;
}

static bool model_is_address(const char *value)
{
    const char *port = strrchr(value, ':');

    if (strlen(value) > 107)
        return false;
    return strchr(value, '/') || (port && model_number(port + 1, 10, 1, 65535) > 0);
}

static bool model_is_conninfo(const char *value)
{
    PQconninfoOption *options = PQconninfoParse(value, NULL);

    PQconninfoFree(options);
    return options;
}

static bool model_is_pattern(const char *value)
{
    return strstr(value, "{id}") || strstr(value, "{serial}");
}

static bool model_take_value(struct model *model, const struct rule *rule, const char *value)
{
    long *number = &model->numbers[rule - rules];

    switch (rule->kind) {
    case KIND_CONNINFO:
        model->database = value;
        return model_is_conninfo(value);
    case KIND_ADDRESS:
        model->listen = value;
        return model_is_address(value);
    case KIND_PATTERN:
        model->instance_schema = value;
        return model_is_pattern(value);
    case KIND_NUMBER:
    case KIND_MODE:
    case KIND_FLAG:
        *number = model_number(value, rule->kind == KIND_MODE ? 8 : 10, rule->low, rule->high);
        return *number >= 0;
    case KIND_END:
        break;
    }
    return false;
}

static void model_take(
    struct model *model, const struct rule *rule, const char *name, const char *value)
{
    if (model->status >= 0 || !model->known)
        return;
    if (rule->kind == KIND_END) {
        model->status = EXIT_SUCCESS;
    } else if (!model_take_value(model, rule, value)) {
        model->status = EX_USAGE;
        model->name = name;
        model->secret = rule->kind == KIND_CONNINFO;
    }
}

/* The environment is read first, in the order of the options. */
static void model_read_environment(struct model *model, const struct call *call)
{
    for (size_t r = 0; r < RULES; r++)
        for (size_t i = 0; i < call->count; i++) {
            const struct setting *setting = &call->settings[i];

            if (setting->rule != &rules[r] || setting->way != WAY_VARIABLE)
                continue;
            /* The first of equal names counts, and an empty value is none. */
            if (*setting->value)
                model_take(model, setting->rule, setting->rule->variable, setting->value);
            break;
        }
}

static struct model model_read(const struct call *call)
{
    struct model model = {.known = true, .status = -1};

    for (size_t r = 0; r < RULES; r++)
        model.numbers[r] = -1;
    model_read_environment(&model, call);
    for (size_t i = 0; i < call->count; i++) {
        const struct setting *setting = &call->settings[i];

        if (setting->way == WAY_RAW)
            model.known = model.known && model.status >= 0;
        else if (setting->way != WAY_VARIABLE)
            model_take(&model, setting->rule, setting->rule->name,
                setting->rule->kind == KIND_FLAG ? "1" : setting->value);
    }
    return model;
}

static char *call_print(const char *left, const char *middle, const char *right)
{
    char *text;

    CHECK(asprintf(&text, "%s%s%s", left, middle, right) >= 0);
    return text;
}

static void call_add_word(struct call *call, const char *word)
{
    call->argv[call->argc++] = call_print(word, "", "");
}

/* Whether the option can be given in this way. */
static bool call_has_way(const struct rule *rule, enum way way)
{
    switch (way) {
    case WAY_VARIABLE:
        return rule->variable;
    case WAY_LETTER:
        return rule->letter;
    case WAY_EQUALS:
        return rule->kind != KIND_FLAG && rule->kind != KIND_END;
    case WAY_WORDS:
    case WAY_RAW:
    case WAYS:
        break;
    }
    return true;
}

/* Puts a setting into the command line or the environment. */
static void call_add(struct call *call, const struct setting *setting)
{
    const struct rule *rule = setting->rule;

    switch (setting->way) {
    case WAY_VARIABLE:
        call->environment[call->variables++] = call_print(rule->variable, "=", setting->value);
        break;
    case WAY_RAW:
        call_add_word(call, setting->value);
        break;
    case WAY_EQUALS:
        call->argv[call->argc++] = call_print(rule->name, "=", setting->value);
        break;
    case WAY_WORDS:
    case WAY_LETTER:
    case WAYS:
        call_add_word(call, setting->way == WAY_LETTER ? rule->letter : rule->name);
        if (rule->kind != KIND_FLAG && rule->kind != KIND_END)
            call_add_word(call, setting->value);
        break;
    }
}

static void call_read(struct call *call, struct fuzz_input *input)
{
    call_add_word(call, "merchant-sessions.fcgi");
    while (input->left > 0 && call->count < SETTINGS_MAX) {
        struct setting *setting = &call->settings[call->count++];

        setting->rule = &rules[fuzz_byte(input) % (sizeof rules / sizeof rules[0])];
        setting->way = fuzz_byte(input) % WAYS;
        if (!call_has_way(setting->rule, setting->way))
            setting->way = WAY_WORDS;
        setting->value = fuzz_string(input);
        call_add(call, setting);
    }
}

static void call_free(struct call *call)
{
    for (size_t i = 0; i < call->count; i++)
        free(call->settings[i].value);
    for (size_t i = 0; i < call->variables; i++)
        free(call->environment[i]);
    for (int i = 0; i < call->argc; i++)
        free(call->argv[i]);
}

/* Calls options_read() with the streams and the environment that it is to have. */
static void call_run(const struct call *call, struct outcome *outcome)
{
    char *argv[COUNT_OF(call->argv)], *printed, **environment = environ;
    FILE *error = stderr, *output = stdout;
    size_t length;

    /* getopt() sorts it. */
    memcpy(argv, call->argv, sizeof argv);
    environ = (char **)(uintptr_t)call->environment;
    stderr = open_memstream(&outcome->output, &length);
    stdout = open_memstream(&printed, &length);
    CHECK(stderr && stdout);
    optind = 0;
    reading = true;
    outcome->status = -1;
    if (setjmp(at_exit) == 0)
        outcome->options = options_read(call->argc, argv);
    else
        outcome->status = exit_status;
    reading = false;
    environ = environment;
    fclose(stderr);
    fclose(stdout);
    stderr = error;
    stdout = output;
    free(printed);
}

/* What is true of all options, whatever they were read from. */
static void check_ranges(const struct options *options)
{
    CHECK(options->workers >= 0 && options->workers <= 1024);
    CHECK(options->socket_mode <= 0777);
    CHECK(options->poll_interval_ms >= 10 && options->poll_interval_ms <= 60000);
    CHECK(options->max_wait_ms >= 0 && options->max_wait_ms <= 86400000);
    CHECK(options->max_waiting >= 0 && options->max_waiting <= 1000000);
    CHECK(options->db_timeout_ms >= 10 && options->db_timeout_ms <= 60000);
    CHECK(!options->database || model_is_conninfo(options->database));
    CHECK(!options->listen || model_is_address(options->listen));
    CHECK(!options->instance_schema || model_is_pattern(options->instance_schema));
}

static bool is_same_text(const char *left, const char *right)
{
    return left && right ? strcmp(left, right) == 0 : left == right;
}

/* A number as it was given, else the default. */
static bool is_number(const struct model *model, int option, long value, long otherwise)
{
    return value == (model->numbers[option] >= 0 ? model->numbers[option] : otherwise);
}

static void check_options(const struct model *model, const struct options *options)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);

    CHECK(is_same_text(options->database, model->database));
    CHECK(is_same_text(options->listen, model->listen));
    CHECK(is_same_text(options->instance_schema, model->instance_schema));
    CHECK(is_number(model, WORKERS, options->workers, processors));
    CHECK(is_number(model, SOCKET_MODE, options->socket_mode, 0660));
    CHECK(is_number(model, POLL_INTERVAL, options->poll_interval_ms, 25));
    CHECK(is_number(model, MAX_WAIT, options->max_wait_ms, 50000));
    CHECK(is_number(model, MAX_WAITING, options->max_waiting, 8192));
    CHECK(is_number(model, DB_TIMEOUT, options->db_timeout_ms, 2000));
    CHECK(is_number(model, CHECK_FLAG, options->check, false));
    CHECK(is_number(model, VERBOSE, options->verbose, false));
    CHECK(is_number(model, ALLOW_ROOT, options->allow_root, false));
    CHECK(is_number(model, NO_SANDBOX, options->no_sandbox, false));
}

/* One line that names what is refused, and is the same for all values of a secret. */
static void check_refusal(const struct model *model, const char *output)
{
    static size_t secret_length;
    size_t length = strlen(output);

    CHECK(length > 0 && output[length - 1] == '\n');
    if (!model->known || !model->name)
        return;
    CHECK(strstr(output, model->name));
    if (!model->secret)
        return;
    length -= strlen(model->name);
    CHECK(secret_length == 0 || secret_length == length);
    CHECK(strchr(output, '\n')[1] == '\0');
    secret_length = length;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input input = {data, size};
    struct call call = {0};
    struct outcome outcome = {0};
    struct model model;

    call_read(&call, &input);
    model = model_read(&call);
    call_run(&call, &outcome);
    if (model.known)
        CHECK(outcome.status == model.status);
    if (outcome.status == -1)
        check_ranges(&outcome.options);
    if (outcome.status == -1 && model.known)
        check_options(&model, &outcome.options);
    if (outcome.status == EX_USAGE)
        check_refusal(&model, outcome.output);
    else
        CHECK(*outcome.output == '\0');
    free(outcome.output);
    call_free(&call);
    return 0;
}
