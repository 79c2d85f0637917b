/*
 * smtpload - an SMTP load client, and the next hop that verifies what the measured server makes of its messages.
 *
 *   smtpload send --port P --run NAME --messages N [--size 4096] [--plain] [--connections 20] [--per-connection 1]
 *                 [--recipient u%ld@track.test] [--recipients 1000] [--first-recipient 0] [--sender s@ext.test]
 *                 [--pipelining] [--rate R] [--timeout 120]
 *   smtpload sink
 *
 * `send` prints its figures as JSON. --per-connection: messages before QUIT, 0 for no end. --recipient: a pattern whose
 * %ld is a number that goes round. --rate: messages a second, each timed from when it was due; 0 is as fast as it goes.
 *
 * `sink` prints its port and takes orders on standard input:
 *   reset NAME N SIZE PLAIN DOMAIN   expect messages 0..N-1 of this run, with recipients in DOMAIN       ok
 *   count                            messages that have arrived, each counted once                       a number
 *   stat                             all figures                                                         JSON
 *
 * A message is: header | body | last line. The body is the same for a whole run, so that both ends can make it and
 * compare instead of summing; its text has lines that begin with a dot, and from 16 KiB on (without --plain) it is a
 * page of text and a base64 attachment, as large mail is. Header and last line carry the run and the number. The last
 * header field is
 *   X-Bench: NAME NUMBER BEGAN LENGTH HASH
 * where HASH is over the LENGTH octets of header before it. So a message is `altered` unless every octet came through;
 * what the server put before it doesn't count.
 */
#define _GNU_SOURCE
#include "common.h"

#define PAGE 4096         /* octets of text in a message with an attachment */
#define SMALL (16 * 1024) /* octets up to which a message has none */
#define INPUT (256 * 1024)
#define LAST_LINE 128 /* octets, at most */

static const char BOUNDARY_TEXT[] = "--bench\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n";
static const char BOUNDARY_FILE[] = "\r\n--bench\r\nContent-Type: application/pdf; name=offer.pdf\r\n"
                                    "Content-Disposition: attachment; filename=offer.pdf\r\n"
                                    "Content-Transfer-Encoding: base64\r\n\r\n";
static const char BOUNDARY_END[] = "\r\n--bench--\r\n";

/* The body of a run in wire form: dot-stuffed, CR LF lines. */
struct body {
    char *octets;
    size_t size;
    bool multipart;
};

static uint32_t roll(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(*seed >> 33);
}

static void append(struct body *body, const char *text)
{
    size_t length = strlen(text);
    memcpy(body->octets + body->size, text, length);
    body->size += length;
}

/* `size` octets of lines of words; one line in forty begins with a dot, which is doubled. */
static void append_text(struct body *body, size_t size, uint64_t *seed)
{
    char *out = body->octets + body->size, *end = out + size;
    for (long line = 0; end - out > 80; line++) {
        char *start = out;
        if (line % 40 == 7)
            *out++ = '.', *out++ = '.';
        while (out - start < 66) {
            for (uint32_t letters = 2 + roll(seed) % 8; letters; letters--)
                *out++ = (char)('a' + roll(seed) % 26);
            *out++ = ' ';
        }
        out[-1] = '.';
        *out++ = '\r', *out++ = '\n';
    }
    while (end - out > 2)
        *out++ = 'x';
    *out++ = '\r', *out++ = '\n';
    body->size = (size_t)(out - body->octets);
}

static void append_base64(struct body *body, size_t size, uint64_t *seed)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *out = body->octets + body->size, *end = out + size;
    for (; end - out >= 78; *out++ = '\r', *out++ = '\n')
        for (int i = 0; i < 76; i++)
            *out++ = digits[roll(seed) % 64];
    body->size = (size_t)(out - body->octets);
}

/* A body of `size` octets, or up to a line less when it has an attachment. */
static struct body make_body(size_t size, bool plain)
{
    uint64_t seed = size;
    struct body body = {.octets = allocate(size + 2 * PAGE, 1), .multipart = !plain && size > SMALL};
    if (body.multipart) {
        append(&body, BOUNDARY_TEXT);
        append_text(&body, PAGE, &seed);
        append(&body, BOUNDARY_FILE);
        append_base64(&body, size - body.size - strlen(BOUNDARY_END), &seed);
        append(&body, BOUNDARY_END);
    } else {
        append_text(&body, size, &seed);
    }
    return body;
}

static int make_last_line(char *out, const char *run, long number)
{
    return snprintf(out, LAST_LINE, "The end of message %ld of %s\r\n", number, run);
}

/* FNV-1a, 64 bit. */
static uint64_t hash(const char *octets, size_t size)
{
    uint64_t value = 14695981039346656037ULL;
    while (size--)
        value = (value ^ (unsigned char)*octets++) * 1099511628211ULL;
    return value;
}

/* ------------------------------------------------------------------------------------------------ the load client */

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
    const char *run, *sender, *recipient;
    int port, per_connection, set;
    long messages, recipients, first_recipient, begun, sent, failed;
    bool pipelining;
    double rate;
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

static bool send_command(struct client *client, enum state state, int length)
{
    client->state = state;
    client->out[0] = (struct iovec){client->head, (size_t)length};
    client->parts = 1;
    return write_out(client);
}

static int recipient(const struct client *client, char *out, size_t room)
{
    return snprintf(out, room, load.recipient, load.first_recipient + client->number % load.recipients);
}

/* MAIL; with --pipelining RCPT and DATA behind it, whose replies are then only counted. */
static bool send_envelope(struct client *client)
{
    char to[256];
    recipient(client, to, sizeof to);
    int length = load.pipelining ? sprintf(client->head, "MAIL FROM:<%s>\r\nRCPT TO:<%s>\r\nDATA\r\n", load.sender, to)
                                 : sprintf(client->head, "MAIL FROM:<%s>\r\n", load.sender);
    return send_command(client, MAIL, length);
}

static bool send_recipient(struct client *client)
{
    char to[256];
    recipient(client, to, sizeof to);
    return send_command(client, RCPT, sprintf(client->head, "RCPT TO:<%s>\r\n", to));
}

static bool send_message(struct client *client)
{
    char to[256], date[64], *head = client->head;
    time_t now = time(NULL);
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S +0000", gmtime(&now));
    recipient(client, to, sizeof to);
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
        return send_command(client, EHLO, sprintf(client->head, "EHLO load.bench.test\r\n"));
    case MAIL:
        client->state = RCPT;
        return load.pipelining || send_recipient(client);
    case RCPT:
        client->state = DATA;
        return load.pipelining || send_command(client, DATA, sprintf(client->head, "DATA\r\n"));
    case DATA:
        return send_message(client);
    case DOT:
        message_sent(client);
        if (load.per_connection && client->messages == load.per_connection)
            return send_command(client, QUIT, sprintf(client->head, "QUIT\r\n"));
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

static int send_main(char **arguments)
{
    load.run = option(arguments, "--run", NULL);
    load.port = atoi(option(arguments, "--port", NULL));
    load.messages = atol(option(arguments, "--messages", NULL));
    load.sender = option(arguments, "--sender", "ann@customer.test");
    load.recipient = option(arguments, "--recipient", "u%ld@track.test");
    load.recipients = atol(option(arguments, "--recipients", "1000"));
    load.first_recipient = atol(option(arguments, "--first-recipient", "0"));
    load.per_connection = atoi(option(arguments, "--per-connection", "1"));
    load.rate = atof(option(arguments, "--rate", "0"));
    load.pipelining = flag(arguments, "--pipelining");
    load.body = make_body((size_t)atol(option(arguments, "--size", "4096")), flag(arguments, "--plain"));
    load.latency = allocate((size_t)load.messages, sizeof *load.latency);
    load.set = epoll_create1(EPOLL_CLOEXEC);
    long connections = atol(option(arguments, "--connections", "20"));
    struct client *clients = allocate((size_t)connections, sizeof *clients);
    for (long i = 0; i < connections; i++)
        clients[i] = (struct client){.fd = -1, .number = -1};

    double cpu = cpu_seconds();
    load.started = load.ended = now_ns();
    int64_t limit = load.started + (int64_t)(atof(option(arguments, "--timeout", "120")) * 1e9);
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

/* ---------------------------------------------------------------------------------------------------- the next hop */

/* A connection to us. What it sends is a command, a header or a body. */
struct peer {
    int fd;
    enum { COMMANDS, HEADER, BODY } reading;
    bool expected;  /* the recipient is in the domain it is to be in */
    bool intact;    /* so far */
    long number;    /* of the message, -1 if it is none of this run */
    int64_t began;
    size_t compared; /* octets of the body */
    size_t have;
    char in[INPUT];
};

static struct {
    char run[64], domain[128];
    long messages, unique, duplicate, altered, misdirected, foreign, connections;
    bool *seen;
    int64_t last, *latency;
    double cpu;
    struct body body;
    int set;
} sink;

static void say(const struct peer *peer, const char *reply)
{
    if (write(peer->fd, reply, strlen(reply)) < 0 && errno != EPIPE && errno != ECONNRESET)
        die("write to the server");
}

/* The message is whole: count it, then answer. */
static void take_message(struct peer *peer)
{
    if (peer->number < 0) {
        sink.foreign++;
    } else if (sink.seen[peer->number]) {
        sink.duplicate++;
    } else {
        sink.seen[peer->number] = true;
        sink.altered += !peer->intact;
        sink.misdirected += !peer->expected;
        sink.last = now_ns();
        sink.latency[sink.unique++] = sink.last - peer->began;
    }
    say(peer, "250 2.0.0 Ok\r\n");
}

/* One command line; false when it was QUIT. */
static bool take_command(struct peer *peer, const char *line)
{
    if (!strncasecmp(line, "EHLO", 4)) {
        say(peer, "250-sink.bench.test\r\n250-PIPELINING\r\n250-SIZE 60000000\r\n250-8BITMIME\r\n"
                  "250-ENHANCEDSTATUSCODES\r\n250 SMTPUTF8\r\n");
    } else if (!strncasecmp(line, "RCPT", 4)) {
        const char *at = strrchr(line, '@');
        size_t length = strlen(sink.domain);
        peer->expected = at && !strncmp(at + 1, sink.domain, length) && at[length + 1] == '>';
        say(peer, "250 2.1.5 Ok\r\n");
    } else if (!strncasecmp(line, "DATA", 4)) {
        peer->reading = HEADER;
        say(peer, "354 Go on\r\n");
    } else if (!strncasecmp(line, "QUIT", 4)) {
        say(peer, "221 2.0.0 Bye\r\n");
        return false;
    } else {
        say(peer, "250 2.0.0 Ok\r\n"); /* HELO, MAIL, RSET, NOOP */
    }
    return true;
}

/* A whole header: whose message is it, and is the header still as it was sent? */
static void take_header(struct peer *peer, char *header, char *end)
{
    char run[64];
    long long number, began;
    unsigned long long sum;
    size_t length;
    *end = 0;
    peer->reading = BODY;
    peer->number = -1;
    peer->compared = 0;
    char *field = strstr(header, "\r\nX-Bench: ");
    if (!field || sscanf(field + 11, "%63s %lld %lld %zu %llx", run, &number, &began, &length, &sum) != 5)
        return;
    if (strcmp(run, sink.run) || number < 0 || number >= sink.messages)
        return;
    field += 2;
    peer->number = (long)number;
    peer->began = began;
    peer->intact = (size_t)(field - header) >= length && hash(field - length, length) == sum;
}

/* Takes octets of the body, up to its final dot; how many. What equals the body can't hold its end. */
static size_t take_body(struct peer *peer, char *data, size_t size)
{
    size_t rest = sink.body.size - peer->compared, step = size < rest ? size : rest;
    if (peer->number >= 0 && peer->intact && !memcmp(data, sink.body.octets + peer->compared, step) && step) {
        peer->compared += step;
        return step;
    }
    char *end = memmem(data, size, "\r\n.\r\n", 5);
    if (!end && size < LAST_LINE)
        return 0; /* the rest of the last line is on its way */
    if (!end) {
        peer->intact = false;
        return size - 4;
    }
    char last[LAST_LINE];
    size_t length = (size_t)make_last_line(last, sink.run, peer->number);
    peer->intact &= !rest && (size_t)(end + 2 - data) == length && !memcmp(data, last, length);
    peer->reading = COMMANDS;
    take_message(peer);
    return (size_t)(end + 5 - data);
}

/* Takes as much of the input as can be taken; false when the connection is to be closed. */
static bool take(struct peer *peer)
{
    char *at = peer->in, *stop = peer->in + peer->have, *end;
    while (at < stop) {
        size_t size = (size_t)(stop - at);
        if (peer->reading == COMMANDS && (end = memchr(at, '\n', size))) {
            *end = 0;
            if (!take_command(peer, at))
                return false;
            at = end + 1;
        } else if (peer->reading == HEADER && (end = memmem(at, size, "\r\n\r\n", 4))) {
            take_header(peer, at, end + 2);
            at = end + 4;
        } else {
            size_t taken = peer->reading == BODY ? take_body(peer, at, size) : 0;
            if (!taken)
                break;
            at += taken;
        }
    }
    peer->have = (size_t)(stop - at);
    memmove(peer->in, at, peer->have);
    return peer->have < INPUT;
}

static void obey(char *order)
{
    long size;
    int plain;
    if (sscanf(order, "reset %63s %ld %ld %d %127s", sink.run, &sink.messages, &size, &plain, sink.domain) == 5) {
        free(sink.body.octets), free(sink.seen), free(sink.latency);
        sink.body = make_body((size_t)size, plain);
        sink.seen = allocate((size_t)sink.messages, sizeof *sink.seen);
        sink.latency = allocate((size_t)sink.messages, sizeof *sink.latency);
        sink.unique = sink.duplicate = sink.altered = sink.misdirected = sink.foreign = sink.connections = 0;
        sink.cpu = cpu_seconds();
        puts("ok");
    } else if (!strcmp(order, "count")) {
        printf("%ld\n", sink.unique);
    } else {
        printf("{\"unique\":%ld,\"duplicate\":%ld,\"altered\":%ld,\"misdirected\":%ld,\"foreign\":%ld,"
               "\"connections\":%ld,\"last_ns\":%lld,\"cpu_seconds\":%.3f,",
               sink.unique, sink.duplicate, sink.altered, sink.misdirected, sink.foreign, sink.connections,
               (long long)sink.last, cpu_seconds() - sink.cpu);
        print_latency(sink.latency, sink.unique);
        puts("}");
    }
}

static void take_connections(int listener)
{
    for (int fd; (fd = accepted(listener)) >= 0;) {
        struct peer *peer = malloc(sizeof *peer); /* not cleared: most of it is input */
        if (!peer)
            die("memory");
        peer->fd = fd;
        peer->reading = COMMANDS;
        peer->have = 0;
        sink.connections++;
        watch(sink.set, EPOLL_CTL_ADD, fd, EPOLLIN, peer);
        say(peer, "220 sink.bench.test ESMTP\r\n");
    }
}

static void sink_main(void)
{
    int listener = listening();
    sink.set = epoll_create1(EPOLL_CLOEXEC);
    watch(sink.set, EPOLL_CTL_ADD, listener, EPOLLIN, &sink);
    watch(sink.set, EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN, NULL);
    for (;;) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(sink.set, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct peer *peer = events[i].data.ptr;
            if (!peer) {
                take_orders(obey);
            } else if (events[i].data.ptr == &sink) {
                take_connections(listener);
            } else {
                ssize_t size = read(peer->fd, peer->in + peer->have, INPUT - peer->have);
                if (size < 0 && errno == EAGAIN)
                    continue;
                peer->have += size > 0 ? (size_t)size : 0;
                if (size <= 0 || !take(peer)) {
                    close(peer->fd);
                    free(peer);
                }
            }
        }
    }
}

int main(int count, char **arguments)
{
    signal(SIGPIPE, SIG_IGN);
    if (count > 1 && !strcmp(arguments[1], "send"))
        return send_main(arguments + 2);
    if (count > 1 && !strcmp(arguments[1], "sink"))
        sink_main();
    fprintf(stderr, "usage: smtpload send|sink ... (see the head of smtpload.c)\n");
    return 2;
}
