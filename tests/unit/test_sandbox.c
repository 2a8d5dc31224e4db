/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sandbox.h"

/* A directory outside of those that may be read, with files in it. */
struct scene {
    char directory[40], secret[60], certificate[60], socket[60];
    int listen_fd;
};

static void make_file(const char *path)
{
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    fputs("text", file);
    fclose(file);
}

static int setup(void **state)
{
    struct scene *s = calloc(1, sizeof *s);
    struct sockaddr_un name = {.sun_family = AF_UNIX};

    assert_non_null(s);
    strcpy(s->directory, "/tmp/sandbox-XXXXXX");
    assert_non_null(mkdtemp(s->directory));
    snprintf(s->secret, sizeof s->secret, "%s/secret", s->directory);
    snprintf(s->certificate, sizeof s->certificate, "%s/root.crt", s->directory);
    snprintf(s->socket, sizeof s->socket, "%s/socket", s->directory);
    make_file(s->secret);
    make_file(s->certificate);
    s->listen_fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strcpy(name.sun_path, s->socket);
    assert_int_equal(bind(s->listen_fd, (struct sockaddr *)&name, sizeof name), 0);
    assert_int_equal(listen(s->listen_fd, 1), 0);
    *state = s;
    return 0;
}

static int teardown(void **state)
{
    struct scene *s = *state;

    close(s->listen_fd);
    unlink(s->secret);
    unlink(s->certificate);
    unlink(s->socket);
    rmdir(s->directory);
    free(s);
    return 0;
}

/* errno of opening a file; 0 if it could be opened. */
static int try_open(const char *path, int flags)
{
    int fd = open(path, flags, 0600);

    if (fd < 0)
        return errno;
    close(fd);
    return 0;
}

static int try_connect(const char *path)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    strncpy(name.sun_path, path, sizeof name.sun_path - 1);
    return connect(fd, (struct sockaddr *)&name, sizeof name) == 0 ? 0 : errno;
}

static int try_unlink(const char *path)
{
    return unlink(path) == 0 ? 0 : errno;
}

static int try_start(const char *path)
{
    execl(path, path, (char *)NULL);
    return errno;
}

#define EXPECT(condition)                                                   \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            _exit(1);                                                       \
        }                                                                   \
    } while (0)

/* Runs in a process of its own what cannot be undone. */
static void in_child(void (*check)(const struct scene *s), const struct scene *s)
{
    pid_t pid = fork();
    int status;

    assert_true(pid >= 0);
    if (pid == 0) {
        check(s);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void check_files(const struct scene *s)
{
    char conninfo[200], new[60];
    struct options options = {.database = conninfo, .workers = 1, .listen = s->socket};
    struct sandbox sandbox;

    snprintf(conninfo, sizeof conninfo, "host=%s sslrootcert=%s", s->directory, s->certificate);
    snprintf(new, sizeof new, "%s/new", s->directory);
    sandbox = sandbox_enter(&options);
    if (!sandbox.files) {
        fprintf(stderr, "the kernel has no Landlock: what it forbids is not tested\n");
        return;
    }
    EXPECT(try_open(s->secret, O_RDONLY) == EACCES);
    EXPECT(try_open(s->secret, O_WRONLY) == EACCES);
    EXPECT(try_open(new, O_WRONLY | O_CREAT) == EACCES);
    EXPECT(try_open("/etc/passwd", O_WRONLY | O_APPEND) == EACCES);
    EXPECT(try_unlink(s->secret) == EACCES);
    EXPECT(try_unlink(s->socket) == EACCES);
    EXPECT(mkdir(new, 0700) != 0 && errno == EACCES);
    EXPECT(try_start("/bin/true") == EACCES);
    EXPECT(try_open(s->certificate, O_RDONLY) == 0);
    EXPECT(try_open(s->certificate, O_WRONLY) == EACCES);
    EXPECT(try_open("/etc/hosts", O_RDONLY) == 0);
    EXPECT(try_open("/usr/lib", O_RDONLY | O_DIRECTORY) == 0);
    EXPECT(try_connect(s->socket) == 0);
}

static void test_files(void **state)
{
    in_child(check_files, *state);
}

static void check_lone_process(const struct scene *s)
{
    struct options options = {.workers = 0, .listen = s->socket};

    if (!sandbox_enter(&options).files)
        return;
    EXPECT(try_open(s->secret, O_RDONLY) == EACCES);
    EXPECT(try_unlink(s->socket) == 0);
}

static void test_lone_process_may_remove_its_socket(void **state)
{
    in_child(check_lone_process, *state);
}

static void check_process(const struct scene *s)
{
    struct options options = {.workers = 1};
    struct sandbox sandbox = sandbox_enter(&options);

    (void)s;
    EXPECT(sandbox.no_new_privileges && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
    EXPECT(sandbox.undumpable && prctl(PR_GET_DUMPABLE) == 0);
}

static void test_process(void **state)
{
    in_child(check_process, *state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lone_process_may_remove_its_socket, setup, teardown),
        cmocka_unit_test_setup_teardown(test_process, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
