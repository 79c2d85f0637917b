/*
 * smtpload - an SMTP load client.
 *
 *   smtpload --port P --run NAME --messages N [--size 4096] [--plain] [--connections 20] [--per-connection 1]
 *            [--recipient u] [--recipients 1000] [--first-recipient 0] [--domain track.test]
 *            [--sender ann@customer.test] [--pipelining] [--rate R] [--timeout 120]
 *
 * Sends messages 0..N-1 (message.h) and prints its figures as JSON. --per-connection: messages before QUIT, 0 for no
 * end. The recipients are u0@track.test to u999@track.test in turn, by default. --rate: messages a second, each timed
 * from when it was due; 0 is as fast as it goes. Without --pipelining every command waits for its reply.
 */
#define _GNU_SOURCE /* accept4 */
#include "message.h"

/* What a connection waits for: the reply to what its state is called after. */
enum state { CLOSED, CONNECT, GREETING, EHLO, READY, MAIL, RCPT, DATA, DOT, QUIT };

struct client {
    int fd;
    enum state state;
    int messages;   /* sent on this connection */
    long number;    /* the message under way, -1 if there is none */
    int64_t began;  /* when it was begun, or was due */
    bool blocked;   /* the socket takes no more: EPOLLOUT is watched */
    int parts;      /* of `out` that are still to be written */
    struct iovec out[4];
    char head[1024], last[LAST_LINE]; /* of the message, or the command */
    size_t have;
    char in[2048];
};

static struct {
    const char *run, *sender, *recipient, *domain;
    int port, per_connection, set;
    long messages, connections, recipients, first_recipient, begun, sent, failed;
    bool pipelining;
    double rate, timeout;
    int64_t started, ended, *latency;
    struct body body;
    struct errors errors;
} load;

static void next_message(struct client *client);

static void disconnect(struct client *client)
{
    if (client->fd >= 0)
        close(client->fd);
    client->fd = -1;
    client->state = CLOSED;
}

/* The connection is of no use any more, and the message under way is lost: the client never repeats one. */
static void give_up(struct client *client, const char *why)
{
    static const char *const names[] = {"closed", "connect", "greeting", "EHLO", "ready",
                                        "MAIL",   "RCPT",    "DATA",     "dot",  "QUIT"};
    note_error(&load.errors, names[client->state], why);
    if (client->number >= 0)
        load.failed++;
    client->number = -1;
    disconnect(client);
}

/* Writes what there is to write; false when the connection broke. */
static bool write_out(struct client *client)
{
    struct iovec *part = client->out;
    bool blocked = false;
    while (client->parts && !blocked) {
        ssize_t size = writev(client->fd, part, client->parts);
        if (size < 0 && errno != EAGAIN) {
            give_up(client, strerror(errno));
            return false;
        }
        blocked = size < 0;
        for (size_t left = blocked ? 0 : (size_t)size; client->parts && (left || !part->iov_len);) {
            size_t step = left < part->iov_len ? left : part->iov_len;
            part->iov_base = (char *)part->iov_base + step;
            part->iov_len -= step;
            left -= step;
            if (!part->iov_len)
                part++, client->parts--;
        }
    }
    memmove(client->out, part, (size_t)client->parts * sizeof *part);
    if (blocked != client->blocked) {
        client->blocked = blocked;
        watch(load.set, EPOLL_CTL_MOD, client->fd, EPOLLIN | (blocked ? EPOLLOUT : 0), client);
    }
    return true;
}

static bool send_command(struct client *client, enum state state, const char *command)
{
    client->state = state;
    client->out[0] = (struct iovec){(char *)command, strlen(command)};
    client->parts = 1;
    return write_out(client);
}

static void recipient(const struct client *client, char out[256])
{
    long number = load.first_recipient + client->number % load.recipients;
    snprintf(out, 256, "%s%ld@%s", load.recipient, number, load.domain);
}

/* MAIL; with --pipelining RCPT and DATA behind it, whose replies are then only counted. */
static bool send_envelope(struct client *client)
{
    char to[256];
    recipient(client, to);
    int length = snprintf(client->head, sizeof client->head, "MAIL FROM:<%s>\r\n", load.sender);
    if (load.pipelining)
        length += snprintf(client->head + length, 300, "RCPT TO:<%s>\r\nDATA\r\n", to);
    return send_command(client, MAIL, client->head);
}

static bool send_recipient(struct client *client)
{
    char to[256];
    recipient(client, to);
    snprintf(client->head, sizeof client->head, "RCPT TO:<%s>\r\n", to);
    return send_command(client, RCPT, client->head);
}

static bool send_message(struct client *client)
{
    char to[256], date[64], *head = client->head;
    time_t now = time(NULL);
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S +0000", gmtime(&now));
    recipient(client, to);
    int length = snprintf(head, 800,
                          "From: Ann Customer <%s>\r\nTo: <%s>\r\nSubject: Enquiry %ld about your offer\r\nDate: %s\r\n"
                          "Message-ID: <%s.%ld@bench.test>\r\nMIME-Version: 1.0\r\nContent-Type: %s\r\n",
                          load.sender, to, client->number, date, load.run, client->number,
                          load.body.multipart ? "multipart/mixed; boundary=bench" : "text/plain; charset=us-ascii");
    int all = length + snprintf(head + length, 200, "X-Bench: %s %ld %lld %d %llx\r\n\r\n", load.run, client->number,
                                (long long)client->began, length, (unsigned long long)hash(head, (size_t)length));
    client->state = DOT;
    client->out[0] = (struct iovec){head, (size_t)all};
    client->out[1] = (struct iovec){load.body.octets, load.body.size};
    client->out[2] = (struct iovec){client->last, (size_t)make_last_line(client->last, load.run, client->number)};
    client->out[3] = (struct iovec){".\r\n", 3};
    client->parts = 4;
    return write_out(client);
}

static void message_sent(struct client *client)
{
    load.ended = now_ns();
    load.latency[load.sent++] = load.ended - client->began;
    client->number = -1;
    client->messages++;
}

/* One whole reply. False when the connection is no longer the one it was read from. */
static bool take_reply(struct client *client, const char *text)
{
    if (text[0] != (client->state == DATA ? '3' : '2')) {
        give_up(client, text);
        return false;
    }
    switch (client->state) {
    case GREETING:
        return send_command(client, EHLO, "EHLO load.bench.test\r\n");
    case MAIL:
        client->state = RCPT;
        return load.pipelining || send_recipient(client);
    case RCPT:
        client->state = DATA;
        return load.pipelining || send_command(client, DATA, "DATA\r\n");
    case DATA:
        return send_message(client);
    case DOT:
        message_sent(client);
        if (load.per_connection && client->messages == load.per_connection)
            return send_command(client, QUIT, "QUIT\r\n");
        /* fall through */
    case EHLO:
        client->state = READY;
        if (client->number < 0)
            next_message(client);
        else
            send_envelope(client);
        return client->fd >= 0;
    default: /* QUIT, or a reply that nothing asked for */
        disconnect(client);
        return false;
    }
}

static void take_input(struct client *client)
{
    ssize_t size = read(client->fd, client->in + client->have, sizeof client->in - client->have);
    if (size < 0 && errno == EAGAIN)
        return;
    if (size <= 0)
        return give_up(client, size ? strerror(errno) : "closed by the server");
    client->have += (size_t)size;
    char *line = client->in, *stop = client->in + client->have, *end;
    for (; (end = memchr(line, '\n', (size_t)(stop - line))); line = end + 1) {
        *end = 0;
        if (end - line > 3 && line[3] != '-' && !take_reply(client, line))
            return;
    }
    client->have = (size_t)(stop - line);
    memmove(client->in, line, client->have);
}

/* Gives an unoccupied connection the next message, if one is due. */
static void next_message(struct client *client)
{
    int64_t now = now_ns(), due = load.rate > 0 ? load.started + (int64_t)((double)load.begun / load.rate * 1e9) : now;
    if (load.begun == load.messages || due > now)
        return;
    client->number = load.begun++;
    client->began = due;
    if (client->state == READY) {
        send_envelope(client);
        return;
    }
    client->fd = connecting(load.port);
    client->state = CONNECT;
    if (client->fd < 0)
        return give_up(client, strerror(errno));
    client->messages = client->parts = 0;
    client->have = 0;
    client->blocked = true;
    watch(load.set, EPOLL_CTL_ADD, client->fd, EPOLLIN | EPOLLOUT, client);
}

static void handle(struct client *client, uint32_t events)
{
    if (client->state == CONNECT) {
        int error = connect_error(client->fd);
        if (error)
            return give_up(client, strerror(error));
        client->state = GREETING;
        write_out(client); /* nothing yet: this ends the watch for EPOLLOUT */
    } else if ((events & EPOLLOUT) && !write_out(client)) {
        return;
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        take_input(client);
}

static int print_load(long unfinished, double cpu)
{
    double seconds = (double)(load.ended - load.started) / 1e9;
    printf("{\"sent\":%ld,\"failed\":%ld,\"unfinished\":%ld,\"octets\":%zu,\"started_ns\":%lld,\"seconds\":%.6f,"
           "\"cpu_seconds\":%.3f,",
           load.sent, load.failed, unfinished, load.body.size, (long long)load.started, seconds, cpu);
    print_latency(load.latency, load.sent);
    printf(",");
    print_errors(&load.errors);
    printf("}\n");
    return load.sent == load.messages ? 0 : 1;
}

static void read_options(char **arguments)
{
    load.run = option(arguments, "--run", NULL);
    load.port = atoi(option(arguments, "--port", NULL));
    load.messages = atol(option(arguments, "--messages", NULL));
    load.sender = option(arguments, "--sender", "ann@customer.test");
    load.recipient = option(arguments, "--recipient", "u");
    load.domain = option(arguments, "--domain", "track.test");
    load.recipients = atol(option(arguments, "--recipients", "1000"));
    load.first_recipient = atol(option(arguments, "--first-recipient", "0"));
    load.per_connection = atoi(option(arguments, "--per-connection", "1"));
    load.rate = atof(option(arguments, "--rate", "0"));
    load.pipelining = flag(arguments, "--pipelining");
    load.body = make_body((size_t)atol(option(arguments, "--size", "4096")), flag(arguments, "--plain"));
    load.connections = atol(option(arguments, "--connections", "20"));
    load.timeout = atof(option(arguments, "--timeout", "120"));
    if (load.messages < 1 || load.recipients < 1 || load.connections < 1) {
        fprintf(stderr, "--messages, --recipients and --connections are at least 1\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    (void)argc;
    signal(SIGPIPE, SIG_IGN);
    read_options(argv + 1);
    load.latency = allocate((size_t)load.messages, sizeof *load.latency);
    load.set = epoll_create1(EPOLL_CLOEXEC);
    long connections = load.connections;
    struct client *clients = allocate((size_t)connections, sizeof *clients);
    for (long i = 0; i < connections; i++)
        clients[i] = (struct client){.fd = -1, .number = -1};

    double cpu = cpu_seconds();
    load.started = load.ended = now_ns();
    int64_t limit = load.started + (int64_t)(load.timeout * 1e9);
    while (load.sent + load.failed < load.messages && now_ns() < limit) {
        struct epoll_event events[EVENTS];
        for (long i = 0; i < connections && load.begun < load.messages; i++)
            if (clients[i].state == CLOSED || clients[i].state == READY)
                next_message(&clients[i]);
        int count = epoll_wait(load.set, events, EVENTS, load.rate > 0 && load.begun < load.messages ? 1 : 100);
        for (int i = 0; i < count; i++) {
            struct client *client = events[i].data.ptr;
            if (client->fd >= 0) /* not closed by an event before */
                handle(client, events[i].events);
        }
    }
    return print_load(load.messages - load.sent - load.failed, cpu_seconds() - cpu);
}
