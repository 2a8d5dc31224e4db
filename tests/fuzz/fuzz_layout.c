/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "fuzz.h"

#include <stdbool.h>

#include "../columns.h"
#include "layout.h"

/*
 * Oracle: what the rows of sql/layout.sql say of each column is kept in a table, and the layout
 * follows from it. Any value may be NULL, any row missing, doubled or of another table, and the
 * result may have too few fields.
 *
 * An input is a byte for the number of fields, then for each row a byte for the column, a byte of
 * flags and, with one of these flags, three strings.
 */

#define ROWS_MAX 40

enum { FIELDS_ENOUGH = 8, FIELDS_MAX = 9 };

/* The flags of a row; without any it is a row of a database in order. */
enum {
    VALUE_ABSENT = 1,
    VALUE_UNREADABLE = 2,
    VALUE_UNINDEXED = 4,
    VALUE_NULL = 8,     /* what is not true is NULL instead of false */
    VALUE_STRINGS = 16, /* schema, table and column come from the input */
};

struct row {
    char *schema, *table, *column;
    bool present, readable, indexed;
};

struct catalogue {
    struct row rows[ROWS_MAX];
    size_t count;
    int fields;
};

static char *copy_of(const char *text)
{
    char *copy = strdup(text);

    CHECK(copy);
    return copy;
}

static void set_text(PGresult *result, int row, int field, const char *text)
{
    /* PQsetvalue() does not write to the text. */
    CHECK(PQsetvalue(result, row, field, (char *)(uintptr_t)text, text ? (int)strlen(text) : -1));
}

static void add_row(struct catalogue *catalogue, PGresult *result, struct fuzz_input *input)
{
    const struct column *column = &columns[fuzz_byte(input) % COUNT_OF(columns)];
    unsigned flags = fuzz_byte(input);
    bool strings = flags & VALUE_STRINGS;
    struct row row = {
        .schema = strings ? fuzz_string(input) : copy_of("merchant"),
        .table = strings ? fuzz_string(input) : copy_of(column->table),
        .column = strings ? fuzz_string(input) : copy_of(column->name),
        .present = !(flags & VALUE_ABSENT),
        .readable = !(flags & VALUE_UNREADABLE),
        .indexed = !(flags & VALUE_UNINDEXED),
    };
    const char *no = flags & VALUE_NULL ? NULL : "f";
    const char *values[FIELDS_MAX] = {row.schema, row.table, row.column, row.present ? "t" : no,
        row.readable ? "t" : no, row.indexed ? "t" : no, no, no, no};

    for (int field = 0; field < catalogue->fields; field++)
        set_text(result, (int)catalogue->count, field, values[field]);
    catalogue->rows[catalogue->count++] = row;
}

static PGresult *read_input(struct catalogue *catalogue, struct fuzz_input *input)
{
    static char names[FIELDS_MAX][8] = {
        "schema", "tab", "col", "present", "read", "index", "", "", ""};
    PGresAttDesc fields[FIELDS_MAX] = {0};
    PGresult *result = PQmakeEmptyPGresult(NULL, PGRES_TUPLES_OK);

    for (size_t i = 0; i < FIELDS_MAX; i++)
        fields[i].name = names[i];
    CHECK(result);
    /* Enough of them, or as few as an answer to another statement has. */
    catalogue->fields = fuzz_byte(input) % 8 ? FIELDS_MAX : 3;
    CHECK(PQsetResultAttrs(result, catalogue->fields, fields));
    while (input->left > 0 && catalogue->count < ROWS_MAX)
        add_row(catalogue, result, input);
    return result;
}

/* What the first row of this column says, NULL if there is none. */
static const struct row *find(
    const struct catalogue *catalogue, const char *table, const char *column)
{
    const struct row *found = NULL;

    for (size_t i = catalogue->count; i-- > 0;)
        if (strcmp(catalogue->rows[i].table, table) == 0 &&
            strcmp(catalogue->rows[i].column, column) == 0)
            found = &catalogue->rows[i];
    return found;
}

static bool is_present(const struct catalogue *catalogue, const char *table, const char *column)
{
    const struct row *row = find(catalogue, table, column);

    return row && row->present;
}

static bool is_indexed(const struct catalogue *catalogue, const char *table)
{
    const struct row *row = find(catalogue, table, "merchant_serial");

    return row && row->indexed;
}

/* Whether each instance has a schema of its own: the instances are there, and no contracts. */
static bool is_per_instance(const struct catalogue *catalogue)
{
    for (size_t i = 0; i < catalogue->count; i++)
        if (catalogue->rows[i].present &&
            strcmp(catalogue->rows[i].table, "merchant_contract_terms") == 0)
            return false;
    return is_present(catalogue, "merchant_instances", "merchant_serial") &&
           is_present(catalogue, "merchant_instances", "merchant_id");
}

/* The first row that lacks what a lookup needs, NULL if there is none. */
static const struct row *find_trouble(const struct catalogue *catalogue, bool orders_needed)
{
    bool instances_alone = is_per_instance(catalogue);

    for (size_t i = 0; i < catalogue->count; i++) {
        const struct row *row = &catalogue->rows[i];
        bool needed = instances_alone ? strcmp(row->table, "merchant_instances") == 0
                                      : orders_needed || strcmp(row->table, "merchant_orders") != 0;

        if (needed && !(row->present && row->readable))
            return row;
    }
    return NULL;
}

static void check_problem(const struct layout *layout, const char *table, const char *column)
{
    CHECK(strnlen(layout->problem, sizeof layout->problem) < sizeof layout->problem);
    CHECK(layout->problem[0] != '\0');
    /* Longer names may be cut short. */
    if (strlen(layout->schema) + strlen(table) + strlen(column) > 150)
        return;
    CHECK(strstr(layout->problem, table));
    CHECK(strstr(layout->problem, column));
}

static void check_good(const struct catalogue *catalogue, const struct layout *layout)
{
    const char *statement = layout_lookup(&layout->tables);

    CHECK(layout->problem[0] == '\0');
    CHECK(layout->tables.claimed_indexed == is_indexed(catalogue, "merchant_contract_terms"));
    CHECK(layout->tables.unclaimed_indexed == is_indexed(catalogue, "merchant_orders"));
    CHECK((strstr(statement, "merchant_orders") != NULL) == layout->tables.finds_unclaimed);
}

/* The statement for a schema names the tables of this schema alone, and merchant_serial only where
 * the tables have it. */
static void check_statement(const struct layout *layout, const char *quoted, bool has_serial)
{
    struct layout_tables tables = layout->tables;
    enum session_question question = has_serial ? QUESTION_EVERYTHING : QUESTION_PAYMENT;
    char *text, *table;

    tables.has_serial = has_serial;
    text = layout_make_statement(question, &tables, quoted, -7);
    CHECK(text);
    CHECK((strstr(text, "(SELECT -7::bigint AS merchant_serial)") != NULL) == has_serial);
    CHECK(has_serial || !strstr(text, "i.merchant_serial"));
    CHECK(!strstr(text, "merchant_instances"));
    CHECK(!strstr(text, "FROM merchant_"));
    table = strstr(text, quoted);
    CHECK(table && strncmp(table + strlen(quoted), ".merchant_", strlen(".merchant_")) == 0);
    free(text);
}

static void check_layout(const struct catalogue *catalogue, bool ok, const struct layout *layout)
{
    bool orders_known = is_present(catalogue, "merchant_orders", "session_id") &&
                        is_present(catalogue, "merchant_orders", "fulfillment_url");
    const struct row *trouble = find_trouble(catalogue, orders_known);
    bool known = is_per_instance(catalogue) || is_present(catalogue, "merchant_orders", "order_id");
    const char *schema = catalogue->count > 0 ? catalogue->rows[0].schema : "";

    if (catalogue->count == 0 || catalogue->fields < FIELDS_ENOUGH) {
        CHECK(!ok);
        check_problem(layout, "", "");
        return;
    }
    CHECK(strncmp(layout->schema, schema, sizeof layout->schema - 1) == 0);
    CHECK(layout->tables.finds_unclaimed == orders_known);
    CHECK(layout->per_instance == is_per_instance(catalogue));
    CHECK(ok == (known && !trouble));
    if (ok)
        check_good(catalogue, layout);
    else if (!known)
        check_problem(layout, "merchant_orders", "order_id");
    else
        check_problem(layout, trouble->table, trouble->column);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input input = {data, size};
    struct catalogue catalogue = {0};
    PGresult *result = read_input(&catalogue, &input);
    struct layout layout;
    bool ok = layout_read(result, &layout);

    check_layout(&catalogue, ok, &layout);
    check_statement(&layout, "\"a /*end*/ /*schema*/ %s\"", size % 2);
    for (size_t i = 0; i < catalogue.count; i++) {
        free(catalogue.rows[i].schema);
        free(catalogue.rows[i].table);
        free(catalogue.rows[i].column);
    }
    PQclear(result);
    return 0;
}
