/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef CAPTURE_H
#define CAPTURE_H

#include "unit.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* What the program writes to standard error, which goes to a file meanwhile. */
struct capture {
    FILE *file;
    int stderr_fd;
    char text[4096];
};

static inline void capture_begin(struct capture *capture)
{
    capture->file = tmpfile();
    assert_non_null(capture->file);
    capture->stderr_fd = dup(STDERR_FILENO);
    assert_true(dup2(fileno(capture->file), STDERR_FILENO) >= 0);
}

/* Returns the text, which is the capture's. */
static inline const char *capture_end(struct capture *capture)
{
    size_t length;

    assert_true(dup2(capture->stderr_fd, STDERR_FILENO) >= 0);
    close(capture->stderr_fd);
    rewind(capture->file);
    length = fread(capture->text, 1, sizeof capture->text - 1, capture->file);
    capture->text[length] = '\0';
    fclose(capture->file);
    return capture->text;
}

static inline void assert_contains(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("'%s' is not in '%s'", part, text);
}

static inline size_t count_lines(const char *text)
{
    size_t count = 0;

    for (; *text; text++)
        count += *text == '\n';
    return count;
}

#endif
