/*
 * A server as one thread round one epoll set, the same for every protocol: it prints its port, takes orders from its
 * driver on standard input, and gives what comes over each connection to the protocol piece by piece.
 */
#ifndef BENCHMARKS_SINK_H
#define BENCHMARKS_SINK_H

#include "common.h"

#define INPUT (256 * 1024) /* octets that may wait for the rest of their piece */
#define ENOUGH ((size_t)-1) /* what take() returns to have the connection closed */

struct peer {
    int fd;
    void *session; /* the protocol's, zero at first */
    size_t have;
    char in[INPUT];
};

struct protocol {
    size_t session;                                             /* octets */
    void (*greet)(struct peer *peer);                           /* a new connection */
    size_t (*take)(struct peer *peer, char *data, size_t size); /* how many octets were taken; 0 when a piece is not whole */
    void (*obey)(char *order);                                  /* answers with one line */
};

static inline void say(const struct peer *peer, const char *text)
{
    if (write(peer->fd, text, strlen(text)) < 0 && errno != EPIPE && errno != ECONNRESET)
        die("write to the server");
}

static inline void welcome(int set, int listener, const struct protocol *protocol)
{
    for (int one = 1, fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct peer *peer = malloc(sizeof *peer); /* not cleared: most of it is input */
        if (!peer)
            die("memory");
        peer->fd = fd;
        peer->have = 0;
        peer->session = allocate(1, protocol->session);
        watch(set, EPOLL_CTL_ADD, fd, EPOLLIN, peer);
        protocol->greet(peer);
    }
}

/* Reads once and gives on what can be taken; false when the connection is to be closed. */
static inline bool read_peer(struct peer *peer, const struct protocol *protocol)
{
    ssize_t got = read(peer->fd, peer->in + peer->have, INPUT - peer->have);
    if (got <= 0)
        return got < 0 && errno == EAGAIN;
    peer->have += (size_t)got;
    size_t at = 0, size;
    while (at < peer->have && (size = protocol->take(peer, peer->in + at, peer->have - at))) {
        if (size == ENOUGH)
            return false;
        at += size;
    }
    peer->have -= at;
    memmove(peer->in, peer->in + at, peer->have);
    return peer->have < INPUT;
}

/* Serves until the driver ends. */
static inline void serve(const struct protocol *protocol)
{
    int set = epoll_create1(EPOLL_CLOEXEC), listener = listening();
    watch(set, EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
    watch(set, EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN, NULL);
    for (;;) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(set, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct peer *peer = events[i].data.ptr;
            if (!peer) {
                take_orders(protocol->obey);
            } else if (events[i].data.ptr == &listener) {
                welcome(set, listener, protocol);
            } else if (!read_peer(peer, protocol)) {
                close(peer->fd);
                free(peer->session);
                free(peer);
            }
        }
    }
}

#endif
