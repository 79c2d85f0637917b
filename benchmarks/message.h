/*
 * The messages of a run, as the load client makes them and the next hop expects them, in wire form (dot-stuffed).
 *
 *   header | body | last line
 *
 * The body is the same for a whole run, so that both ends can make it and compare instead of summing. Its text has
 * lines that begin with a dot. From 16 KiB on, unless `plain`, it is a page of text and a base64 attachment, as large
 * mail is. Header and last line carry the run and the number; the last header field is
 *
 *   X-Bench: RUN NUMBER BEGAN LENGTH HASH
 *
 * BEGAN being when the message was begun (nanoseconds) and HASH that of the LENGTH octets of header before it. So the
 * next hop sees whether every octet came through; what the server put before them does not count.
 */
#ifndef BENCHMARKS_MESSAGE_H
#define BENCHMARKS_MESSAGE_H

#include "common.h"

#define PAGE 4096         /* octets of text in a message with an attachment */
#define SMALL (16 * 1024) /* octets up to which a message has none */
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

static inline uint32_t roll(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(*seed >> 33);
}

static inline void append(struct body *body, const char *text)
{
    size_t length = strlen(text);
    memcpy(body->octets + body->size, text, length);
    body->size += length;
}

/* `size` octets of lines of words; one line in forty begins with a dot, which is doubled. */
static inline void append_text(struct body *body, size_t size, uint64_t *seed)
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

static inline void append_base64(struct body *body, size_t size, uint64_t *seed)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *out = body->octets + body->size, *end = out + size;
    for (; end - out >= 78; *out++ = '\r', *out++ = '\n')
        for (int i = 0; i < 76; i++)
            *out++ = digits[roll(seed) % 64];
    body->size = (size_t)(out - body->octets);
}

/* A body of `size` octets, or up to a line less when it has an attachment. */
static inline struct body make_body(size_t size, bool plain)
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

static inline int make_last_line(char *out, const char *run, long number)
{
    return snprintf(out, LAST_LINE, "The end of message %ld of %s\r\n", number, run);
}

#endif
