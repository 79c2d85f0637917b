"""What goes over the socket between the poster and the process that makes its requests (webapi/request_process.py).

request   number, length of head and of body; head: JSON [method, URL, {name: value}]
answer    number, status or 0, length of head and of content; head: JSON [Retry-After, reason, trouble]
"""

from __future__ import annotations

import json
import struct

from webapi.requests import ANSWER, Answer, NoAnswer, Request

READY = b"ready\n"
REQUEST = struct.Struct("!III")
ANSWERED = struct.Struct("!IIII")
#: Octets of an answer's head: no field of a receiver is longer than what aiohttp takes, a traceback is cut.
MOST_HEAD = 64 * 1024
_TROUBLE = 8000


def pack_request(number: int, request: Request) -> bytes:
    head = json.dumps([request.method, request.url, dict(request.headers)]).encode()
    return REQUEST.pack(number, len(head), len(request.body)) + head + request.body


def read_request(head: bytes, body: bytes) -> Request:
    method, url, headers = json.loads(head)
    return Request(method, url, headers, body)


def pack_answer(number: int, answer: Answer | NoAnswer) -> bytes:
    if isinstance(answer, Answer):
        status, content, head = answer.status, answer.content, [_clean(answer.retry_after), None, None]
    else:
        status, content, head = (
            0,
            b"",
            [None, _clean(answer.reason), _clean(answer.trouble and answer.trouble[-_TROUBLE:])],
        )
    written = json.dumps(head).encode()
    return ANSWERED.pack(number, status, len(written), len(content)) + written + content


def _clean(text: str | None) -> str | None:
    """Without what is no character: octets of a header field beyond ASCII come as lone surrogates."""
    return text and text.encode("utf-8", "replace").decode()


def read_answer(status: int, head: bytes, content: bytes) -> Answer | NoAnswer:
    """Raises ValueError for what no process of ours says."""
    try:
        retry_after, reason, trouble = json.loads(head)
        for value in (retry_after, reason, trouble):
            if value is not None:
                value.encode()
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError("not the head of an answer") from error
    if status:
        return Answer(status, content, retry_after)
    return NoAnswer(reason or "", trouble)


def check_lengths(head: int, content: int) -> None:
    """Raises ValueError: the process that talks to strangers must not make the daemon hold what it likes."""
    if head > MOST_HEAD or content > ANSWER:
        raise ValueError(f"an answer of {head} and {content} octets")
