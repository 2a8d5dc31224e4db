/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef UNIT_H
#define UNIT_H

/* What cmocka wants to have been included before it, in this order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* Numbers that look random, and are the same in every run. */
static inline uint32_t scatter(uint32_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

/* For tests that ask for more memory than there is: malloc() and its kin return NULL then, with
 * ASan too. Only a program that has such a test needs it. */
#define MALLOC_MAY_FAIL                       \
    const char *__asan_default_options(void); \
    const char *__asan_default_options(void)  \
    {                                         \
        return "allocator_may_return_null=1"; \
    }

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

#endif
