/*
 * bindload - page views: POST /v1/bind over kept connections, as the script on a page sends them.
 *
 *   bindload --port P --site KEY --origin URL --address A --binds N [--connections 64] [--first-visit 0] [--rate R]
 *            [--bare 0] [--timeout 120]
 *
 * Every bind is the first page view of a new visitor, as the script sends it and a browser's and a proxy's fields stand
 * round it: a landing page, a referrer, an address, one of the usual browsers; every other with utm marks. With
 * --first-visit V the visits have the numbers V, V+1 and so on, as from another counter's cookie; else they are ours to
 * give. An answer counts when it is 200 and gives the address a substitute. --rate: binds a second, each timed from when
 * it was due; 0 is as fast as it goes. --bare 1: only the header fields that are needed. The figures are printed as JSON.
 */
#define _GNU_SOURCE /* memmem */
#include "common.h"

struct client {
    int fd;
    bool connected, idle;
    int64_t began;
    size_t have;
    char in[8192];
};

static struct {
    const char *site, *origin, *address;
    char shown[256]; /* what an answer must hold */
    int port, set, bare;
    long binds, first_visit, begun, done, failed;
    double rate;
    int64_t started, *latency;
    struct errors errors;
} load;

static const char *const agents[] = {
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6 "
    "Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (X11; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0",
};
static const char *const referrers[] = {"https://www.google.com/", "https://www.bing.com/search?q=crm", "",
                                        "https://partner.test/reviews/crm"};

static void give_up(struct client *client, const char *why)
{
    note_error(&load.errors, "bind", why);
    load.failed++;
    close(client->fd);
    client->fd = -1;
}

/* The next bind on this connection when it is due, which is closed when there is none. */
static void send_bind(struct client *client)
{
    char visit[32] = "null", marks[128] = "", body[1024], request[4096];
    if (load.begun == load.binds) {
        close(client->fd);
        client->fd = -1;
        return;
    }
    int64_t now = now_ns(), due = load.rate > 0 ? load.started + (int64_t)((double)load.begun / load.rate * 1e9) : now;
    client->idle = due > now;
    if (client->idle)
        return;
    long number = load.begun++;
    if (load.first_visit)
        snprintf(visit, sizeof visit, "\"%ld\"", load.first_visit + number);
    if (number % 2)
        snprintf(marks, sizeof marks, "?utm_source=google&utm_medium=cpc&utm_campaign=c%ld&utm_term=crm", number % 20);
    int length = snprintf(body, sizeof body,
                          "{\"site\":\"%s\",\"visit\":%s,\"first_visit\":null,\"google_client_id\":\"%ld.1795000000\","
                          "\"page\":\"%s/offers/%ld%s\",\"referrer\":\"%s\",\"addresses\":[\"%s\"],"
                          "\"params\":{\"1\":\"%ld\"},\"interacted\":%s}",
                          load.site, visit, 100000000 + number, load.origin, number % 100, marks,
                          referrers[number / 2 % 4], load.address, number, number % 3 ? "true" : "false");
    char more[1024] = "";
    if (!load.bare)
        snprintf(more, sizeof more,
                 "X-Forwarded-For: 81.%ld.%ld.%ld\r\nReferer: %s/\r\nAccept: */*\r\n"
                 "Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n"
                 "Sec-Fetch-Dest: empty\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Site: cross-site\r\n",
                 number & 255, number >> 8 & 255, number >> 16 & 255, load.origin);
    int all = snprintf(request, sizeof request,
                       "POST /v1/bind HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nOrigin: %s\r\nUser-Agent: %s\r\n%s"
                       "Content-Type: text/plain;charset=UTF-8\r\nContent-Length: %d\r\n\r\n%s",
                       load.port, load.origin, agents[number % 4], more, length, body);
    client->began = due;
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
    load.rate = atof(option(argv, "--rate", "0"));
    load.bare = atoi(option(argv, "--bare", "0"));
    load.latency = allocate((size_t)load.binds, sizeof *load.latency);
    load.set = epoll_create1(EPOLL_CLOEXEC);
    snprintf(load.shown, sizeof load.shown, "\"%s\":", load.address);
    long connections = atol(option(argv, "--connections", "64"));
    struct client *clients = allocate((size_t)connections, sizeof *clients);

    double cpu = cpu_seconds();
    load.started = now_ns();
    int64_t limit = load.started + (int64_t)(atof(option(argv, "--timeout", "120")) * 1e9);
    for (long i = 0; i < connections; i++) {
        if ((clients[i].fd = connecting(load.port)) < 0)
            die("connect");
        watch(load.set, EPOLL_CTL_ADD, clients[i].fd, EPOLLOUT, &clients[i]);
    }
    while (load.done + load.failed < load.binds && load.failed < connections && now_ns() < limit) {
        struct epoll_event events[EVENTS];
        for (long i = 0; i < connections && load.rate > 0; i++)
            if (clients[i].fd >= 0 && clients[i].idle)
                send_bind(&clients[i]);
        int count = epoll_wait(load.set, events, EVENTS, load.rate > 0 ? 1 : 100);
        for (int i = 0; i < count; i++)
            handle(events[i].data.ptr);
    }
    printf("{\"bound\":%ld,\"failed\":%ld,\"unfinished\":%ld,\"seconds\":%.6f,\"cpu_seconds\":%.3f,", load.done,
           load.failed, load.binds - load.done - load.failed, (double)(now_ns() - load.started) / 1e9, cpu_seconds() - cpu);
    print_latency(load.latency, load.done);
    printf(",");
    print_errors(&load.errors);
    printf("}\n");
    return load.done == load.binds ? 0 : 1;
}
