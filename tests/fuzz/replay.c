/* SPDX-License-Identifier: GPL-3.0-or-later */
#include <dirent.h>
#include <err.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "fuzz.h"

/*
 * replay FILE|DIRECTORY...: gives each input to a fuzz target once, without libFuzzer. The target
 * aborts when its oracle finds something.
 */

/* Reads a whole file; the caller frees what is returned. */
static uint8_t *replay_load(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rbe");
    uint8_t *data = NULL;
    size_t room = 0, n;

    if (!file)
        err(EXIT_FAILURE, "%s", path);
    *size = 0;
    do {
        room = room * 2 + 4096;
        data = realloc(data, room);
        if (!data)
            err(EXIT_FAILURE, "%s", path);
        n = fread(data + *size, 1, room - *size, file);
        *size += n;
    } while (n > 0);
    if (ferror(file))
        err(EXIT_FAILURE, "%s", path);
    fclose(file);
    return data;
}

/* A copy of the exact size lets AddressSanitizer see a read past the end. */
static void replay_input(const uint8_t *data, size_t size)
{
    uint8_t *exact = calloc(1, size ? size : 1);

    if (!exact)
        err(EXIT_FAILURE, "calloc");
    for (size_t i = 0; i < size; i++)
        exact[i] = data[i];
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
}

static void replay_file(const char *path)
{
    size_t size;
    uint8_t *data = replay_load(path, &size);

    printf("%s\n", path);
    fflush(stdout);
    replay_input(data, size);
    free(data);
}

static void replay_directory(const char *path, DIR *directory)
{
    for (struct dirent *entry; (entry = readdir(directory));) {
        char *file;

        if (entry->d_name[0] == '.')
            continue;
        if (asprintf(&file, "%s/%s", path, entry->d_name) < 0)
            err(EXIT_FAILURE, "asprintf");
        replay_file(file);
        free(file);
    }
}

int main(int argc, char *argv[])
{
    replay_input(NULL, 0);
    for (int i = 1; i < argc; i++) {
        DIR *directory = opendir(argv[i]);

        if (!directory) {
            replay_file(argv[i]);
            continue;
        }
        replay_directory(argv[i], directory);
        closedir(directory);
    }
    return EXIT_SUCCESS;
}
