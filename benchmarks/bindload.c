/*
 * bindload - page views: POST /v1/bind over kept connections, as the script on a page sends them.
 *
 *   bindload --port P --site KEY --origin URL --address A --binds N [--connections 64] [--first-visit 0] [--timeout 120]
 *
 * Every bind is the first page view of a new visitor, with a landing page, a referrer and utm marks of its own. With
 * --first-visit V the visits have the numbers V, V+1 and so on, as from another counter's cookie; else they are ours to
 * give. An answer counts when it is 200 and gives the address a substitute. The figures are printed as JSON.
 */
#define _GNU_SOURCE /* memmem */
#include "common.h"

struct client {
    int fd;
    bool connected;
    int64_t began;
    size_t have;
    char in[8192];
};

static struct {
    const char *site, *origin, *address;
    char shown[256]; /* what an answer must hold */
    int port, set;
    long binds, first_visit, begun, done, failed;
    int64_t *latency;
    struct errors errors;
} load;

static void give_up(struct client *client, const char *why)
{
    note_error(&load.errors, "bind", why);
    load.failed++;
    close(client->fd);
    client->fd = -1;
}

/* The next bind on this connection, which is closed when there is none. */
static void send_bind(struct client *client)
{
    char visit[32] = "null", body[1024], request[2048];
    if (load.begun == load.binds) {
        close(client->fd);
        client->fd = -1;
        return;
    }
    long number = load.begun++;
    if (load.first_visit)
        snprintf(visit, sizeof visit, "\"%ld\"", load.first_visit + number);
    int length = snprintf(body, sizeof body,
                          "{\"site\":\"%s\",\"visit\":%s,\"first_visit\":null,\"page\":\"%s/offers/%ld?utm_source=google&"
                          "utm_medium=cpc&utm_campaign=c%ld&utm_term=crm\",\"referrer\":\"https://www.google.test/\","
                          "\"addresses\":[\"%s\"],\"params\":{\"1\":\"%ld\"},\"google_client_id\":\"1.%ld\"}",
                          load.site, visit, load.origin, number % 100, number % 20, load.address, number, number);
    int all = snprintf(request, sizeof request,
                       "POST /v1/bind HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nOrigin: %s\r\nContent-Type: text/plain\r\n"
                       "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n"
                       "Content-Length: %d\r\n\r\n%s",
                       load.port, load.origin, length, body);
    client->began = now_ns();
    client->have = 0;
    if (write(client->fd, request, (size_t)all) != all) /* far less than the socket's buffer */
        give_up(client, strerror(errno));
}

/* The length of the answer, header and body, once it is all there; 0 before, -1 for none. */
static long whole_answer(const struct client *client)
{
    const char *body = memmem(client->in, client->have, "\r\n\r\n", 4);
    if (!body)
        return client->have < sizeof client->in - 1 ? 0 : -1;
    const char *field = strcasestr(client->in, "\r\nContent-Length:");
    if (!field || field > body)
        return -1;
    long all = body + 4 - client->in + atol(field + 17);
    return all > (long)sizeof client->in - 1 ? -1 : (long)client->have >= all ? all : 0;
}

static void take_answer(struct client *client)
{
    ssize_t size = read(client->fd, client->in + client->have, sizeof client->in - 1 - client->have);
    if (size < 0 && errno == EAGAIN)
        return;
    if (size <= 0)
        return give_up(client, size ? strerror(errno) : "closed by the server");
    client->have += (size_t)size;
    client->in[client->have] = 0;
    long length = whole_answer(client);
    if (!length)
        return;
    if (length < 0 || strncmp(client->in, "HTTP/1.1 200 ", 13) || !strstr(client->in, load.shown))
        return give_up(client, client->in);
    load.latency[load.done++] = now_ns() - client->began;
    send_bind(client);
}

static void handle(struct client *client)
{
    if (client->connected)
        return take_answer(client);
    int error = connect_error(client->fd);
    if (error)
        return give_up(client, strerror(error));
    client->connected = true;
    watch(load.set, EPOLL_CTL_MOD, client->fd, EPOLLIN, client);
    send_bind(client);
}

int main(int argc, char **argv)
{
    (void)argc;
    signal(SIGPIPE, SIG_IGN);
    load.port = atoi(option(argv, "--port", NULL));
    load.site = option(argv, "--site", NULL);
    load.origin = option(argv, "--origin", NULL);
    load.address = option(argv, "--address", NULL);
    load.binds = atol(option(argv, "--binds", NULL));
    load.first_visit = atol(option(argv, "--first-visit", "0"));
    load.latency = allocate((size_t)load.binds, sizeof *load.latency);
    load.set = epoll_create1(EPOLL_CLOEXEC);
    snprintf(load.shown, sizeof load.shown, "\"%s\":", load.address);
    long connections = atol(option(argv, "--connections", "64"));
    struct client *clients = allocate((size_t)connections, sizeof *clients);

    double cpu = cpu_seconds();
    int64_t started = now_ns(), limit = started + (int64_t)(atof(option(argv, "--timeout", "120")) * 1e9);
    for (long i = 0; i < connections; i++) {
        if ((clients[i].fd = connecting(load.port)) < 0)
            die("connect");
        watch(load.set, EPOLL_CTL_ADD, clients[i].fd, EPOLLOUT, &clients[i]);
    }
    while (load.done + load.failed < load.binds && load.failed < connections && now_ns() < limit) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(load.set, events, EVENTS, 100);
        for (int i = 0; i < count; i++)
            handle(events[i].data.ptr);
    }
    printf("{\"bound\":%ld,\"failed\":%ld,\"unfinished\":%ld,\"seconds\":%.6f,\"cpu_seconds\":%.3f,", load.done,
           load.failed, load.binds - load.done - load.failed, (double)(now_ns() - started) / 1e9, cpu_seconds() - cpu);
    print_latency(load.latency, load.done);
    printf(",");
    print_errors(&load.errors);
    printf("}\n");
    return load.done == load.binds ? 0 : 1;
}
