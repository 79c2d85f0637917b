/*
 * hooksink - a webhook receiver that answers every POST with 200 at once and counts.
 *
 * It prints its port and takes orders on standard input:
 *   reset   forget all counts                                                   ok
 *   stat    {"posts":…,"events":…,"octets":…}: posts in all, different values of webhook-id, octets of the bodies
 */
#define _GNU_SOURCE /* memmem, accept4 */
#include "sink.h"

#define SLOTS (1 << 20) /* of the set of webhook-ids; many more than events of a run */

struct session {
    size_t body; /* octets of the request that are still to come */
};

static struct {
    long posts, events;
    int64_t octets;
    uint64_t ids[SLOTS]; /* open addressing over hashes; 0 is free */
} sink;

/* Counts a webhook-id that was not seen before. Two of a million share a hash with a probability of 3e-8. */
static void note_event(const char *id)
{
    uint64_t value = hash(id, strcspn(id, "\r"));
    value |= !value;
    for (size_t at = value % SLOTS; sink.events < SLOTS / 2; at = (at + 1) % SLOTS) {
        if (sink.ids[at] == value)
            return;
        if (!sink.ids[at]) {
            sink.ids[at] = value;
            sink.events++;
            return;
        }
    }
    fprintf(stderr, "more events than expected\n");
    exit(2);
}

static void greet(struct peer *peer)
{
    (void)peer; /* in HTTP the client speaks first */
}

static void answer(const struct peer *peer)
{
    sink.posts++;
    say(peer, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
}

static size_t take_body(struct peer *peer, struct session *session, size_t size)
{
    size_t step = size < session->body ? size : session->body;
    session->body -= step;
    if (!session->body)
        answer(peer);
    return step;
}

static size_t take(struct peer *peer, char *data, size_t size)
{
    struct session *session = peer->session;
    if (session->body)
        return take_body(peer, session, size);
    char *end = memmem(data, size, "\r\n\r\n", 4);
    if (!end)
        return 0;
    end[2] = 0;
    const char *length = strcasestr(data, "\r\nContent-Length:"), *id = strcasestr(data, "\r\nwebhook-id: ");
    if (!length || strncmp(data, "POST ", 5))
        return ENOUGH;
    session->body = strtoul(length + 17, NULL, 10);
    sink.octets += (int64_t)session->body;
    if (id)
        note_event(id + 14);
    if (!session->body)
        answer(peer);
    return (size_t)(end + 4 - data);
}

static void obey(char *order)
{
    if (!strcmp(order, "reset")) {
        sink.posts = sink.events = sink.octets = 0;
        memset(sink.ids, 0, sizeof sink.ids);
        puts("ok");
    } else {
        printf("{\"posts\":%ld,\"events\":%ld,\"octets\":%lld}\n", sink.posts, sink.events, (long long)sink.octets);
    }
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    serve(&(struct protocol){sizeof(struct session), greet, take, obey});
}
