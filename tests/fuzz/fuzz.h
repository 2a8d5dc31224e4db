/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * What the fuzz targets share. Each defines LLVMFuzzerTestOneInput(), which libFuzzer or replay.c
 * calls with one input after another, and says at its head what its oracle is.
 */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What an oracle holds to be true. Aborting is how a target reports a finding. */
#define CHECK(condition) ((condition) ? (void)0 : fuzz_report(__FILE__, __LINE__, #condition))

static inline _Noreturn void fuzz_report(const char *file, int line, const char *condition)
{
    fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, condition);
    abort();
}

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

/* The part of an input that has not been used. */
struct fuzz_input {
    const uint8_t *at;
    size_t left;
};

/* The next byte; 0 at the end. */
static inline uint8_t fuzz_byte(struct fuzz_input *input)
{
    if (input->left == 0)
        return 0;
    input->left--;
    return *input->at++;
}

/*
 * The next string: all up to a NUL, or to the end. The caller frees it. It has a block of its exact
 * size, so that AddressSanitizer sees a read past the end.
 */
static inline char *fuzz_string(struct fuzz_input *input)
{
    size_t length = strnlen((const char *)input->at, input->left);
    char *string = malloc(length + 1);

    if (!string)
        abort();
    if (length > 0)
        memcpy(string, input->at, length);
    string[length] = '\0';
    input->at += length;
    input->left -= length;
    fuzz_byte(input);
    return string;
}

#endif
