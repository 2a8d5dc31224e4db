/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "capture.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "listener.h"

/* Each test has an empty directory of its own as working directory. */
static int enter_directory(void **state)
{
    char *directory = strdup("/tmp/test-listener-XXXXXX");

    *state = directory;
    return directory && mkdtemp(directory) && chdir(directory) == 0 ? 0 : -1;
}

static int leave_directory(void **state)
{
    char command[64];
    int status;

    snprintf(command, sizeof command, "rm -rf %s", (char *)*state);
    status = chdir("/") == 0 ? system(command) : -1;
    free(*state);
    return status;
}

static struct listener opened(const char *address, mode_t mode)
{
    struct listener listener;
    struct capture capture;
    bool ok;

    capture_begin(&capture);
    ok = listener_open(&listener, address, mode);
    capture_end(&capture);
    if (!ok)
        fail_msg("%s", capture.text);
    assert_string_equal(capture.text, "");
    return listener;
}

/* One line that names the address and the reason. */
static void refused(const char *address, const char *reason)
{
    struct listener listener;
    struct capture capture;
    bool ok;

    capture_begin(&capture);
    ok = listener_open(&listener, address, 0600);
    capture_end(&capture);
    assert_false(ok);
    assert_int_equal(count_lines(capture.text), 1);
    assert_contains(capture.text, address);
    assert_contains(capture.text, reason);
}

static bool connects(const char *path)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    bool ok;

    memcpy(name.sun_path, path, strlen(path));
    ok = connect(fd, (struct sockaddr *)&name, sizeof name) == 0;
    close(fd);
    return ok;
}

/* A socket of another program; it listens unless backlog is negative. */
static int foreign_socket(const char *path, int backlog)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    memcpy(name.sun_path, path, strlen(path));
    assert_int_equal(bind(fd, (struct sockaddr *)&name, sizeof name), 0);
    if (backlog >= 0)
        assert_int_equal(listen(fd, backlog), 0);
    return fd;
}

static ino_t inode_of(const char *path)
{
    struct stat file;

    return lstat(path, &file) == 0 ? file.st_ino : 0;
}

static void test_a_path(void **state)
{
    struct listener listener = opened("./sock", 0600);

    (void)state;
    assert_true(connects("sock"));
    assert_int_equal(fcntl(listener.fd, F_GETFD), FD_CLOEXEC);
    listener_close(&listener);
    assert_int_equal(inode_of("sock"), 0);
    assert_int_equal(fcntl(listener.fd, F_GETFD), -1);
}

static void test_mode(void **state)
{
    static const mode_t modes[] = {0, 0600, 0660, 0666, 0777, 0222};
    mode_t mask = umask(0077);

    (void)state;
    for (size_t i = 0; i < COUNT_OF(modes); i++) {
        struct listener listener = opened("./sock", modes[i]);
        struct stat file;

        assert_int_equal(lstat("sock", &file), 0);
        assert_int_equal(file.st_mode, S_IFSOCK | modes[i]);
        listener_close(&listener);
    }
    assert_int_equal(umask(mask), 0077);
}

/* Everything that is no socket stays. connect() refuses it as it does a socket without server. */
static void test_files_that_are_no_sockets(void **state)
{
    static const struct {
        const char *path, *reason;
    } files[] = {
        {"./file", "it is a regular file"},
        {"./directory", "it is a directory"},
        {"./link", "it is a symbolic link"},
        {"./dangling", "it is a symbolic link"},
        {"./fifo", "it is a FIFO"},
        {"./device", "it is a device"},
    };
    size_t count = COUNT_OF(files);

    (void)state;
    close(open("file", O_CREAT | O_WRONLY, 0600));
    assert_int_equal(mkdir("directory", 0700), 0);
    close(foreign_socket("stale", -1));
    assert_int_equal(symlink("stale", "link"), 0);
    assert_int_equal(symlink("nowhere", "dangling"), 0);
    assert_int_equal(mkfifo("fifo", 0600), 0);
    /* The device of /dev/null; only root may make one. */
    if (mknod("device", S_IFCHR | 0600, (dev_t)(1 << 8 | 3)) != 0)
        count--;
    for (size_t i = 0; i < count; i++) {
        ino_t inode = inode_of(files[i].path);

        refused(files[i].path, files[i].reason);
        assert_int_equal(inode_of(files[i].path), inode);
    }
    assert_true(inode_of("stale") != 0);
}

static void test_a_socket_that_was_left_behind(void **state)
{
    struct listener listener;

    (void)state;
    close(foreign_socket("sock", 1));
    assert_false(connects("sock"));
    listener = opened("./sock", 0600);
    assert_true(connects("sock"));
    listener_close(&listener);
}

/* The socket of a live server is never taken away, also when its queue is full, or when it is
 * of another type. */
static void test_sockets_in_use(void **state)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "datagram"};
    int server = foreign_socket("sock", 0), clients = 0;
    int datagram = socket(AF_UNIX, SOCK_DGRAM, 0);

    (void)state;
    refused("./sock", "it is a socket in use");
    while (connects("sock"))
        assert_in_range(++clients, 1, 10);
    refused("./sock", "it is a socket in use");
    assert_int_equal(bind(datagram, (struct sockaddr *)&name, sizeof name), 0);
    refused("./datagram", "it is a socket in use");
    while (clients-- >= 0)
        close(accept(server, NULL, NULL));
    assert_true(connects("sock"));
    assert_true(inode_of("datagram") != 0);
    close(server);
    close(datagram);
}

static void test_closing_leaves_the_socket_of_another(void **state)
{
    struct listener listener = opened("./sock", 0600);
    int other;

    (void)state;
    assert_int_equal(unlink("sock"), 0);
    other = foreign_socket("sock", 1);
    listener_close(&listener);
    assert_true(connects("sock"));
    close(other);
}

static void test_closing_after_the_directory_has_gone(void **state)
{
    struct listener listener;

    (void)state;
    assert_int_equal(mkdir("run", 0700), 0);
    listener = opened("run/sock", 0600);
    assert_int_equal(unlink("run/sock"), 0);
    assert_int_equal(rmdir("run"), 0);
    listener_close(&listener);
    assert_int_equal(fcntl(listener.fd, F_GETFD), -1);
}

/* A socket that refuses still has what waits in its backlog. */
static void test_refusing(void **state)
{
    struct listener unix_socket = opened("./sock", 0600), tcp = opened("127.0.0.1:0", 0600);
    int before = socket(AF_UNIX, SOCK_STREAM, 0), fd;
    const struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "./sock"};

    (void)state;
    assert_int_equal(connect(before, (const struct sockaddr *)&address, sizeof address), 0);
    assert_false(listener_refuses(unix_socket.fd));
    listener_refuse(unix_socket.fd);
    listener_refuse(tcp.fd);
    assert_true(listener_refuses(unix_socket.fd));
    assert_false(listener_refuses(tcp.fd));
    assert_false(connects("./sock"));
    fd = accept(unix_socket.fd, NULL, NULL);
    assert_true(fd >= 0);
    close(fd);
    close(before);
    listener_close(&unix_socket);
    listener_close(&tcp);
}

static void test_paths_that_cannot_be_had(void **state)
{
    char path[110] = "./";

    (void)state;
    refused("nowhere/sock", strerror(ENOENT));
    close(open("file", O_CREAT | O_WRONLY, 0600));
    refused("file/sock", strerror(ENOTDIR));
    memset(path + 2, 'x', sizeof((struct sockaddr_un *)NULL)->sun_path - 2);
    refused(path, strerror(ENAMETOOLONG));
}

/* Another process that is starting, or stopping, in the directory. */
static void test_a_directory_that_is_locked(void **state)
{
    int lock = open(".", O_RDONLY | O_DIRECTORY);
    struct listener listener;
    pid_t pid;

    (void)state;
    close(foreign_socket("sock", -1));
    assert_int_equal(flock(lock, LOCK_EX), 0);
    refused("./sock", "its directory is locked by another process");
    assert_false(connects("sock"));

    /* The lock is waited for. The child has the same lock, and ends it a moment later. */
    pid = fork();
    if (pid == 0) {
        usleep(200 * 1000);
        _exit(flock(lock, LOCK_UN));
    }
    close(lock);
    listener = opened("./sock", 0600);
    assert_int_equal(waitpid(pid, NULL, 0), pid);

    /* Nothing is removed from a directory that is locked. */
    lock = open(".", O_RDONLY | O_DIRECTORY);
    assert_int_equal(flock(lock, LOCK_EX | LOCK_NB), 0);
    listener_close(&listener);
    assert_true(inode_of("sock") != 0);
    close(lock);
}

/* Of programs that start at the same time on the same old socket one gets it. */
static void test_starting_together(void **state)
{
    enum { STARTERS = 8 };
    pid_t pids[STARTERS];
    int go[2];

    (void)state;
    close(foreign_socket("sock", -1));
    assert_int_equal(pipe(go), 0);
    for (int i = 0; i < STARTERS; i++) {
        struct listener listener;
        char byte;

        pids[i] = fork();
        if (pids[i] != 0)
            continue;
        close(go[1]);
        close(STDERR_FILENO);
        if (read(go[0], &byte, 1) != 0)
            _exit(2);
        if (!listener_open(&listener, "./sock", 0600))
            _exit(1);
        /* It serves until all have tried, but not for ever if there are two. */
        sleep(5);
        _exit(0);
    }
    close(go[0]);
    close(go[1]);
    for (int i = 0; i < STARTERS - 1; i++) {
        int status;
        pid_t pid = wait(&status);

        assert_true(pid > 0 && WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 1);
        for (int j = 0; j < STARTERS; j++)
            if (pids[j] == pid)
                pids[j] = 0;
    }
    assert_true(connects("sock"));
    /* Ends the one that is left. */
    for (int i = 0; i < STARTERS; i++)
        if (pids[i])
            kill(pids[i], SIGKILL);
    assert_true(wait(NULL) > 0);
}

/* TCP */

static int connect_tcp(const char *host, int port)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    bool six = strchr(host, ':');
    int fd = socket(six ? AF_INET6 : AF_INET, SOCK_STREAM, 0), done;

    inet_pton(AF_INET, host, &v4.sin_addr);
    inet_pton(AF_INET6, host, &v6.sin6_addr);
    done = six ? connect(fd, (struct sockaddr *)&v6, sizeof v6)
               : connect(fd, (struct sockaddr *)&v4, sizeof v4);
    if (done == 0)
        return fd;
    close(fd);
    return -1;
}

/* An IPv4 socket on a port of the kernel's choice, which stays taken while it is open. */
static int take_port(uint32_t address, int *port)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(address)};
    socklen_t length = sizeof name;
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_int_equal(bind(fd, (struct sockaddr *)&name, length), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&name, &length), 0);
    *port = ntohs(name.sin_port);
    return fd;
}

static int free_port(void)
{
    int port;

    close(take_port(INADDR_ANY, &port));
    return port;
}

static bool has_ipv6(void)
{
    struct sockaddr_in6 name = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    bool ok = fd >= 0 && bind(fd, (struct sockaddr *)&name, sizeof name) == 0;

    if (fd >= 0)
        close(fd);
    return ok;
}

static void assert_serves(const char *host, int port, bool serves)
{
    int fd = connect_tcp(host, port);

    assert_int_equal(fd >= 0, serves);
    if (fd >= 0)
        close(fd);
}

static void test_a_host(void **state)
{
    int port = free_port();
    struct listener listener;
    char address[64];

    (void)state;
    snprintf(address, sizeof address, "127.0.0.1:%d", port);
    listener = opened(address, 0600);
    assert_null(listener.path);
    assert_serves("127.0.0.1", port, true);
    assert_serves("127.0.0.2", port, false);
    listener_close(&listener);
    assert_serves("127.0.0.1", port, false);
}

static void test_an_ipv6_host(void **state)
{
    int port = free_port();
    struct listener listener;
    char address[64];

    (void)state;
    if (!has_ipv6())
        skip();
    snprintf(address, sizeof address, "[::1]:%d", port);
    listener = opened(address, 0600);
    assert_serves("::1", port, true);
    assert_serves("127.0.0.1", port, false);
    listener_close(&listener);
}

static void test_no_host(void **state)
{
    int port = free_port();
    struct listener listener;
    char address[64];

    (void)state;
    snprintf(address, sizeof address, ":%d", port);
    listener = opened(address, 0600);
    assert_serves("127.0.0.1", port, true);
    assert_serves("127.0.0.2", port, true);
    if (has_ipv6())
        assert_serves("::1", port, true);
    listener_close(&listener);
}

/* Whatever the system's default for IPv6 sockets is, one for all addresses serves both. */
static void test_both_families_are_asked_for(void **state)
{
    int port = free_port(), only = 1;
    socklen_t length = sizeof only;
    struct listener listener;
    char address[64];

    (void)state;
    if (!has_ipv6())
        skip();
    snprintf(address, sizeof address, ":%d", port);
    listener = opened(address, 0600);
    assert_int_equal(getsockopt(listener.fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, &length), 0);
    assert_int_equal(only, 0);
    listener_close(&listener);
}

/* Makes socket() fail for IPv6, as a kernel without it does. There is no way back: in a child. */
static void forbid_ipv6(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_INET6, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAFNOSUPPORT),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = COUNT_OF(filter), .filter = filter};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        _exit(77);
}

static void test_a_machine_without_ipv6(void **state)
{
    static const char *const hosts[] = {"", "localhost"};
    int status;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(hosts); i++) {
        int port = free_port();
        char address[64];
        pid_t pid;

        snprintf(address, sizeof address, "%s:%d", hosts[i], port);
        pid = fork();
        if (pid == 0) {
            struct listener listener;

            forbid_ipv6();
            if (!listener_open(&listener, address, 0600))
                _exit(1);
            _exit(connect_tcp("127.0.0.1", port) >= 0 ? 0 : 2);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
            skip();
        assert_int_equal(status, 0);
    }
}

/* A port that is taken for IPv4 is no reason to serve IPv6 alone, nor the other way round. */
static void test_a_port_that_is_taken(void **state)
{
    int port, taken = take_port(INADDR_ANY, &port);
    char address[64];

    (void)state;
    snprintf(address, sizeof address, ":%d", port);
    assert_int_equal(listen(taken, 1), 0);
    refused(address, strerror(EADDRINUSE));
    close(taken);
}

/* Connections of the last run, which the server has closed, do not prevent a restart. */
static void test_a_restart_after_connections(void **state)
{
    int port = free_port();
    struct listener listener;
    char address[64], byte;

    (void)state;
    snprintf(address, sizeof address, "127.0.0.1:%d", port);
    for (int i = 0; i < 2; i++) {
        int client, server;

        listener = opened(address, 0600);
        client = connect_tcp("127.0.0.1", port);
        server = accept(listener.fd, NULL, NULL);
        assert_true(client >= 0 && server >= 0);
        close(server);
        assert_int_equal(read(client, &byte, 1), 0);
        close(client);
        listener_close(&listener);
    }
}

static void test_hosts_that_cannot_be_had(void **state)
{
    struct listener listener;
    struct capture capture;

    (void)state;
    refused("192.0.2.1:9000", strerror(EADDRNOTAVAIL));
    capture_begin(&capture);
    assert_false(listener_open(&listener, "no such host:9000", 0600));
    capture_end(&capture);
    /* Whatever the resolver says of it, it is the resolver's own text. */
    assert_null(strstr(capture.text, strerror(EADDRNOTAVAIL)));
    assert_true(strstr(capture.text, gai_strerror(EAI_NONAME)) ||
                strstr(capture.text, gai_strerror(EAI_AGAIN)) ||
                strstr(capture.text, gai_strerror(EAI_FAIL)));
}

/* Sockets from the process that starts this one */

static void set_systemd_variables(pid_t pid, const char *sockets)
{
    char text[32];

    snprintf(text, sizeof text, "%ld", (long)pid);
    setenv("LISTEN_PID", text, 1);
    setenv("LISTEN_FDS", sockets, 1);
}

static void assert_inherited(int wanted)
{
    int fd = -1;

    assert_null(listener_inherit(&fd));
    assert_int_equal(fd, wanted);
}

static void assert_not_inherited(const char *reason)
{
    int fd;
    const char *text = listener_inherit(&fd);

    assert_non_null(text);
    assert_non_null(strstr(text, reason));
}

static void test_descriptor_0(void **state)
{
    int saved = dup(STDIN_FILENO), fd = foreign_socket("sock", -1);

    (void)state;
    assert_int_equal(dup2(open("/dev/null", O_RDONLY), 0), 0);
    assert_not_inherited("descriptor 0");
    assert_int_equal(dup2(fd, 0), 0);
    assert_not_inherited("descriptor 0");
    assert_int_equal(listen(0, 1), 0);
    assert_inherited(0);
    set_systemd_variables(getppid(), "1");
    assert_inherited(0);
    set_systemd_variables(getpid(), "1");
    unsetenv("LISTEN_FDS");
    assert_inherited(0);
    close(0);
    assert_not_inherited("descriptor 0");
    unsetenv("LISTEN_PID");
    dup2(saved, 0);
    close(saved);
    close(fd);
}

static void test_a_socket_of_systemd(void **state)
{
    int saved = dup(3), fd = foreign_socket("sock", -1);

    (void)state;
    assert_int_equal(dup2(fd, 3), 3);
    set_systemd_variables(getpid(), "1");
    assert_not_inherited("descriptor 3");
    assert_int_equal(listen(3, 1), 0);
    assert_inherited(3);
    for (const char **sockets = (const char *[]){"2", "0", "", "-1", "1x", "one", NULL}; *sockets;
         sockets++) {
        set_systemd_variables(getpid(), *sockets);
        assert_not_inherited("LISTEN_FDS");
    }
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    if (saved < 0)
        close(3);
    else
        dup2(saved, 3);
    close(saved);
    close(fd);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, enter_directory, leave_directory)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_path),
        TEST(test_mode),
        TEST(test_files_that_are_no_sockets),
        TEST(test_a_socket_that_was_left_behind),
        TEST(test_sockets_in_use),
        TEST(test_closing_leaves_the_socket_of_another),
        TEST(test_closing_after_the_directory_has_gone),
        TEST(test_refusing),
        TEST(test_paths_that_cannot_be_had),
        TEST(test_a_directory_that_is_locked),
        TEST(test_starting_together),
        TEST(test_a_host),
        TEST(test_an_ipv6_host),
        TEST(test_no_host),
        TEST(test_both_families_are_asked_for),
        TEST(test_a_machine_without_ipv6),
        TEST(test_a_port_that_is_taken),
        TEST(test_a_restart_after_connections),
        TEST(test_hosts_that_cannot_be_had),
        TEST(test_descriptor_0),
        TEST(test_a_socket_of_systemd),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
