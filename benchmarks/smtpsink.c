/*
 * smtpsink - the next hop that verifies what the measured server makes of the messages of smtpload (message.h).
 *
 * It prints its port and takes orders on standard input:
 *   reset RUN N SIZE PLAIN DOMAIN   expect messages 0..N-1 of this run, with recipients in DOMAIN       ok
 *   count                           messages that have arrived, each counted once                       a number
 *   stat                            all figures                                                         JSON
 *
 * unique        messages that have arrived, each counted once        misdirected  of these, not for DOMAIN
 * duplicate     further copies of these                              foreign      messages that are not of this run
 * altered       of these, not octet for octet as they were sent      last_ns      when the last of these was whole
 */
#define _GNU_SOURCE /* memmem, accept4 */
#include "message.h"
#include "sink.h"

/* What is being read over a connection: commands, a header or a body. */
struct session {
    enum { COMMANDS, HEADER, BODY } reading;
    bool expected; /* the recipient is in the domain it is to be in */
    bool intact;   /* so far */
    long number;   /* of the message, -1 if it is none of this run */
    int64_t began;
    size_t compared; /* octets of the body */
};

static struct {
    char run[64], domain[128];
    long messages, unique, duplicate, altered, misdirected, foreign, connections;
    bool *seen;
    int64_t last, *latency;
    double cpu;
    struct body body;
} sink;

static void greet(struct peer *peer)
{
    sink.connections++;
    say(peer, "220 sink.bench.test ESMTP\r\n");
}

static size_t take_command(struct peer *peer, struct session *session, char *line, size_t size)
{
    char *end = memchr(line, '\n', size);
    if (!end)
        return 0;
    *end = 0;
    if (!strncasecmp(line, "EHLO", 4)) {
        say(peer, "250-sink.bench.test\r\n250-PIPELINING\r\n250-SIZE 60000000\r\n250-8BITMIME\r\n"
                  "250-ENHANCEDSTATUSCODES\r\n250 SMTPUTF8\r\n");
    } else if (!strncasecmp(line, "RCPT", 4)) {
        const char *at = strrchr(line, '@');
        size_t length = strlen(sink.domain);
        session->expected = at && !strncmp(at + 1, sink.domain, length) && at[length + 1] == '>';
        say(peer, "250 2.1.5 Ok\r\n");
    } else if (!strncasecmp(line, "DATA", 4)) {
        session->reading = HEADER;
        say(peer, "354 Go on\r\n");
    } else if (!strncasecmp(line, "QUIT", 4)) {
        say(peer, "221 2.0.0 Bye\r\n");
        return ENOUGH;
    } else {
        say(peer, "250 2.0.0 Ok\r\n"); /* HELO, MAIL, RSET, NOOP */
    }
    return (size_t)(end + 1 - line);
}

/* Whose message is it, and is its header still as it was sent? */
static size_t take_header(struct session *session, char *header, size_t size)
{
    char run[64], *end = memmem(header, size, "\r\n\r\n", 4);
    long long number, began;
    unsigned long long sum;
    size_t length;
    if (!end)
        return 0;
    end[2] = 0;
    session->reading = BODY;
    session->number = -1;
    session->compared = 0;
    char *field = strstr(header, "\r\nX-Bench: ");
    if (field && sscanf(field + 11, "%63s %lld %lld %zu %llx", run, &number, &began, &length, &sum) == 5 &&
        !strcmp(run, sink.run) && number >= 0 && number < sink.messages) {
        field += 2;
        session->number = (long)number;
        session->began = began;
        session->intact = (size_t)(field - header) >= length && hash(field - length, length) == sum;
    }
    return (size_t)(end + 4 - header);
}

static void count_message(const struct session *session)
{
    if (session->number < 0) {
        sink.foreign++;
    } else if (sink.seen[session->number]) {
        sink.duplicate++;
    } else {
        sink.seen[session->number] = true;
        sink.altered += !session->intact;
        sink.misdirected += !session->expected;
        sink.last = now_ns();
        sink.latency[sink.unique++] = sink.last - session->began;
    }
}

/* Octets of the body, up to its final dot. What equals the body that is expected can't hold its end. */
static size_t take_body(struct peer *peer, struct session *session, char *data, size_t size)
{
    size_t rest = sink.body.size - session->compared, step = size < rest ? size : rest;
    bool ours = session->number >= 0 && session->intact;
    if (ours && step && !memcmp(data, sink.body.octets + session->compared, step)) {
        session->compared += step;
        return step;
    }
    char *end = memmem(data, size, "\r\n.\r\n", 5);
    if (!end && size < LAST_LINE)
        return 0; /* the rest of the last line is on its way */
    if (!end) {
        session->intact = false;
        return size - 4;
    }
    char last[LAST_LINE];
    size_t length = (size_t)make_last_line(last, sink.run, session->number);
    session->intact &= !rest && (size_t)(end + 2 - data) == length && !memcmp(data, last, length);
    session->reading = COMMANDS;
    count_message(session);
    say(peer, "250 2.0.0 Ok\r\n");
    return (size_t)(end + 5 - data);
}

static size_t take(struct peer *peer, char *data, size_t size)
{
    struct session *session = peer->session;
    switch (session->reading) {
    case COMMANDS:
        return take_command(peer, session, data, size);
    case HEADER:
        return take_header(session, data, size);
    default:
        return take_body(peer, session, data, size);
    }
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

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    serve(&(struct protocol){sizeof(struct session), greet, take, obey});
}
