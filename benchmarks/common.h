/*
 * What the load programs share: options, time, loopback sockets, figures as JSON, orders from the driver.
 *
 * Each program is one thread round one epoll set and does as little as it can, since it shares the machine's cores with
 * the server that is measured. Times are CLOCK_MONOTONIC in nanoseconds, so both ends of a message read one clock.
 */
#ifndef BENCHMARKS_COMMON_H
#define BENCHMARKS_COMMON_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 256 /* taken from epoll at once */
#define SECOND 1000000000LL

static inline int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

/* CPU seconds that this process has used. */
static inline double cpu_seconds(void)
{
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) + (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

static inline void die(const char *what)
{
    perror(what);
    exit(2);
}

static inline void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    if (!memory)
        die("memory");
    return memory;
}

/* The value after `name` among the arguments, or `otherwise`; an option without a default is required. */
static inline const char *option(char **arguments, const char *name, const char *otherwise)
{
    for (; *arguments; arguments++)
        if (!strcmp(*arguments, name) && arguments[1])
            return arguments[1];
    if (!otherwise) {
        fprintf(stderr, "%s is missing\n", name);
        exit(2);
    }
    return otherwise;
}

static inline bool flag(char **arguments, const char *name)
{
    for (; *arguments; arguments++)
        if (!strcmp(*arguments, name))
            return true;
    return false;
}

/* FNV-1a, 64 bit. */
static inline uint64_t hash(const char *octets, size_t size)
{
    uint64_t value = 14695981039346656037ULL;
    while (size--)
        value = (value ^ (unsigned char)*octets++) * 1099511628211ULL;
    return value;
}

/* Sockets: 127.0.0.1 and nothing else. */

static inline struct sockaddr_in loopback(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

/* A socket on its way to being connected; -1 with errno when that failed at once. */
static inline int connecting(int port)
{
    struct sockaddr_in address = loopback(port);
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

/* A listening socket on a free port, which is printed: the driver reads it. */
static inline int listening(void)
{
    struct sockaddr_in address = loopback(0);
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, length) < 0 || listen(fd, 4096) < 0)
        die("listen");
    getsockname(fd, (struct sockaddr *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

/* Why a connection attempt failed, 0 when it did not. */
static inline int connect_error(int fd)
{
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    return error;
}

static inline void watch(int set, int operation, int fd, uint32_t events, void *whose)
{
    struct epoll_event event = {.events = events, .data.ptr = whose};
    if (epoll_ctl(set, operation, fd, &event) < 0)
        die("epoll_ctl");
}

/* Figures */

static inline int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Sorts `times` and prints their percentiles in milliseconds: "latency_ms":{"p50":…}. */
static inline void print_latency(int64_t *times, long count)
{
    static const struct { const char *name; double part; } wanted[] = {{"p50", .5}, {"p90", .9}, {"p99", .99}, {"max", 1}};
    qsort(times, (size_t)count, sizeof *times, ascending);
    printf("\"latency_ms\":{");
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        long at = (long)(wanted[i].part * (double)count);
        int64_t time = count ? times[at < count ? at : count - 1] : 0;
        printf("%s\"%s\":%.3f", i ? "," : "", wanted[i].name, (double)time / 1e6);
    }
    printf("}");
}

/* The first few errors, each as a JSON string. */
struct errors {
    int count;
    char text[8][160];
};

static inline void note_error(struct errors *errors, const char *where, const char *what)
{
    if (errors->count == (int)(sizeof errors->text / sizeof *errors->text))
        return;
    char *text = errors->text[errors->count++];
    snprintf(text, sizeof *errors->text, "%s: %s", where, what);
    for (; *text; text++)
        if (*text == '"' || *text == '\\' || (unsigned char)*text < ' ')
            *text = ' ';
}

static inline void print_errors(const struct errors *errors)
{
    printf("\"errors\":[");
    for (int i = 0; i < errors->count; i++)
        printf("%s\"%s\"", i ? "," : "", errors->text[i]);
    printf("]");
}

/*
 * Reads what the driver wrote to our standard input and obeys every whole line; each is answered by one line. The
 * program ends with its driver: the end of the input is the end of the process.
 */
static inline void take_orders(void (*obey)(char *order))
{
    static char text[1024];
    static size_t have;
    ssize_t size = read(STDIN_FILENO, text + have, sizeof text - have);
    if (size <= 0)
        exit(0);
    have += (size_t)size;
    for (char *end; (end = memchr(text, '\n', have));) {
        *end++ = 0;
        obey(text);
        fflush(stdout);
        have -= (size_t)(end - text);
        memmove(text, end, have);
    }
}

#endif
