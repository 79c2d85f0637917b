"""webapi/ranges.py: a part of a file is exactly that part, wherever the file lies, and a wrong wish is no error."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.mime import Part
from tests.file_fixtures import DOTTED, attachments, fetch, of_one_file, stored
from tests.webapi_fixtures import Api, of_all, serving
from webapi.ranges import Octets, RangeUnsatisfiable, Span, cut, read_range

SIZE = 1000


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[False, True], ids=["in the database", "in a file"])
async def url(shared: Api, request: pytest.FixtureRequest) -> str:
    """A link to TestAttachment.OCTETS."""
    return await TestAttachment().url(shared, TestAttachment.OCTETS, request.param)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        yield found


@pytest.mark.parametrize(
    ("value", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-", (0, SIZE)),
        ("bytes=2-5", (2, 6)),
        ("bytes=999-", (999, 1000)),
        ("bytes=990-2000", (990, 1000)),
        ("bytes=0-99999999999999999999", (0, SIZE)),
        ("bytes=-1", (999, 1000)),
        ("bytes=-1000", (0, SIZE)),
        ("bytes=-5000", (0, SIZE)),
        ("BYTES=2-5", (2, 6)),
        ("bytes= ,2-5 ,\t,", (2, 6)),
    ],
)
def test_a_range_is_first_open_or_suffix(value: str, span: tuple[int, int]) -> None:
    assert read_range(value, SIZE) == Span(*span)


@pytest.mark.parametrize(
    "value",
    [
        *("", "bytes", "bytes=", "bytes=-", "bytes=,", "bytes=a-b", "bytes=5-2", "bytes=1", "bytes=--1", "bytes=1--2"),
        *("bytes=+1-2", "bytes=0x1-2", "bytes=1.0-2", "bytes=1 -2", "bytes=1- 2", "bytes =1-2", "bytes:1-2", "1-2"),
        *("lines=1-2", "bytes=1-2;", "bytes=1-2\n", "bytes=²-3", "bytes=٣-4", f"bytes=0-{'9' * 5000}"),
        *("bytes=0-1,3-4", "bytes=0-0,-1", "bytes=5000-,1-2", f"bytes={'0-1,' * 1000}0-1"),
    ],
)
def test_what_is_malformed_of_another_unit_or_several_is_ignored(value: str) -> None:
    assert read_range(value, SIZE) is None


@pytest.mark.parametrize("value", ["bytes=1000-", "bytes=1000-1001", "bytes=99999999999999999999-", "bytes=-0"])
def test_a_range_of_which_no_octet_is_there_is_unsatisfiable(value: str) -> None:
    with pytest.raises(RangeUnsatisfiable):
        read_range(value, SIZE)


@pytest.mark.parametrize("value", ["bytes=0-", "bytes=0-99", "bytes=5-", "bytes=-5"])
def test_of_nothing_every_range_is_nothing(value: str) -> None:
    assert read_range(value, 0) is None


@given(st.text(max_size=30) | st.text("bytes=0123456789-, ", max_size=30).map("bytes={}".format), st.integers(0, 2000))
def test_any_range_lies_in_the_file_and_is_not_empty(value: str, size: int) -> None:
    try:
        span = read_range(value, size)
    except RangeUnsatisfiable:
        return
    assert span is None or 0 <= span.start < span.end <= size


async def _pieces(pieces: list[bytes], taken: list[bytes]) -> Octets:
    for piece in pieces:
        taken.append(piece)
        yield piece


@settings(deadline=None)
@given(st.lists(st.binary(max_size=9), max_size=9), st.integers(0, 80), st.integers(1, 80))
def test_a_span_of_a_stream_is_that_of_its_octets_and_is_read_no_further(
    pieces: list[bytes], start: int, length: int
) -> None:
    async def run() -> bytes:
        return b"".join([chunk async for chunk in cut(_pieces(pieces, taken), Span(start, start + length))])

    taken: list[bytes] = []
    assert asyncio.run(run()) == b"".join(pieces)[start : start + length]
    assert len(b"".join(taken[:-1])) < start + length


class TestAttachment:
    """The same for a body in the database and for one in a file, 1.3 MB, of which the reader takes 256 KiB at once."""

    OCTETS = random.Random(1).randbytes(1_000_000)

    async def url(self, api: Api, octets: bytes, in_file: bool) -> str:
        message, part = of_one_file(octets)
        (shown,) = await attachments(api, await stored(api, message, in_file=in_file, attachments=[part]))
        url: str = shown["url"]
        return url

    async def ask(self, api: Api, url: str, method: str = "GET", **fields: str) -> tuple[aiohttp.ClientResponse, bytes]:
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        return await api.request(method, url.removeprefix(api.url), headers=headers)

    @of_all
    @pytest.mark.parametrize(
        ("value", "start", "end"),
        [
            ("bytes=0-0", 0, 1),
            ("bytes=0-", 0, 1_000_000),
            ("bytes=1-2", 1, 3),
            ("bytes=196607-196608", 196_607, 196_609),
            ("bytes=500000-", 500_000, 1_000_000),
            ("bytes=-7", 999_993, 1_000_000),
            ("bytes=999999-5000000", 999_999, 1_000_000),
        ],
    )
    async def test_a_range_of_it_is_206(self, shared: Api, url: str, value: str, start: int, end: int) -> None:
        response, octets = await self.ask(shared, url, Range=value)
        assert response.status == 206
        assert response.headers["Content-Range"] == f"bytes {start}-{end - 1}/1000000"
        assert response.headers["Content-Length"] == str(end - start)
        assert response.headers["Content-Type"] == "application/pdf"
        assert octets == self.OCTETS[start:end]

    @pytest.mark.parametrize("in_file", [False, True])
    async def test_a_range_behind_its_end_is_416_and_says_how_long_it_is(self, api: Api, in_file: bool) -> None:
        url = await self.url(api, self.OCTETS, in_file)
        response, octets = await self.ask(api, url, Range="bytes=1000000-")
        assert response.status == 416
        assert response.headers["Content-Range"] == "bytes */1000000"
        assert b"there are 1000000 octets" in octets

    @of_all
    @pytest.mark.parametrize("value", ["bytes=0-1,5-6", "bytes=5-2", "lines=1-2", "x"])
    async def test_what_is_ignored_is_answered_whole(self, shared: Api, url: str, value: str) -> None:
        response, octets = await self.ask(shared, url, Range=value)
        assert (response.status, octets) == (200, self.OCTETS)
        assert response.headers["Accept-Ranges"] == "bytes"
        assert "Content-Range" not in response.headers

    async def test_two_range_fields_are_ignored(self, api: Api) -> None:
        url = await self.url(api, b"0123456789", False)
        two = [("Range", "bytes=1-2"), ("Range", "bytes=4-5")]
        async with api.session.get(url, headers=two) as response:
            assert (response.status, await response.read()) == (200, b"0123456789")

    @pytest.mark.parametrize("in_file", [False, True])
    async def test_head_ignores_a_range_and_says_how_long_the_whole_is(self, api: Api, in_file: bool) -> None:
        url = await self.url(api, self.OCTETS, in_file)
        response, octets = await self.ask(api, url, "HEAD", Range="bytes=1-2")
        assert (response.status, octets) == (200, b"")
        assert response.headers["Content-Length"] == "1000000"
        assert response.headers["Accept-Ranges"] == "bytes"
        assert response.headers["ETag"].startswith('"')

    @pytest.mark.parametrize("in_file", [False, True])
    async def test_an_interrupted_download_goes_on_only_in_the_same_octets(self, api: Api, in_file: bool) -> None:
        url = await self.url(api, self.OCTETS, in_file)
        etag = (await self.ask(api, url))[0].headers["ETag"]
        response, octets = await self.ask(api, url, Range="bytes=999000-", If_Range=etag)
        assert (response.status, octets) == (206, self.OCTETS[999_000:])
        for other in ('"other"', f"W/{etag}", etag[1:-1], "Fri, 15 Jan 2027 08:00:00 GMT"):
            response, octets = await self.ask(api, url, Range="bytes=999000-", If_Range=other)
            assert (response.status, len(octets)) == (200, 1_000_000)

    @pytest.mark.parametrize("in_file", [False, True])
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_who_has_it_already_gets_304(self, api: Api, in_file: bool, method: str) -> None:
        url = await self.url(api, self.OCTETS, in_file)
        etag = (await self.ask(api, url))[0].headers["ETag"]
        for known in (etag, f"W/{etag}", "*", f'"a", "b,c" , {etag}'):
            response, octets = await self.ask(api, url, method, If_None_Match=known, Range="bytes=1-2")
            assert (response.status, octets) == (304, b"")
            assert response.headers["ETag"] == etag
            assert "Content-Type" not in response.headers
        for other in ('"other"', etag[1:-1], f'"x{etag[1:]}'):
            assert (await self.ask(api, url, method, If_None_Match=other))[0].status == 200

    async def test_each_file_has_an_etag_of_its_own(self, api: Api) -> None:
        message = b"Subject: x\r\n\r\none\r\ntwo\r\n"
        parts = [Part(n, f"{n}.txt", "text/plain", 3, False, at, 3, "7bit") for n, at in enumerate((14, 19))]
        found = {}
        for in_file in (False, True):
            message_id = await stored(api, message + b"%d" % in_file, in_file=in_file, attachments=parts)
            for shown in await attachments(api, message_id):
                response, octets = await fetch(api, shown["url"])
                found[response.headers["ETag"]] = octets
        assert sorted(found.values()) == [b"one", b"one", b"two", b"two"]

    async def test_every_range_of_a_part_among_dots_in_odd_encodings_is_the_same_of_the_whole(self, api: Api) -> None:
        lines = b"".join(b".%d=20=\r\n..=C3=\r\n=A4 x\r\n" % number for number in range(30_000))
        head = b"Subject: x\r\n\r\n.\r\n"
        part = Part(0, "a.txt", "text/plain", 0, False, len(head), len(lines), "quoted-printable")
        message_id = await stored(api, head + lines, attachments=[part])
        whole = (await fetch(api, (await attachments(api, message_id))[0]["url"]))[1]
        part = Part(0, "a.txt", "text/plain", len(whole), False, len(head), len(lines), "quoted-printable")
        message_id = await stored(api, head + lines + b"x", in_file=True, attachments=[part])
        url = (await attachments(api, message_id))[0]["url"]
        chance = random.Random(2)
        for _ in range(30):
            start, end = sorted(chance.sample(range(len(whole)), 2))
            response, octets = await self.ask(api, url, Range=f"bytes={start}-{end}")
            assert (response.status, octets) == (206, whole[start : end + 1])

    async def test_a_file_that_has_become_shorter_breaks_the_connection(self, api: Api) -> None:
        url = await self.url(api, self.OCTETS, True)
        (path,) = api.context.bodies.path(".").iterdir()
        path.write_bytes(path.read_bytes()[:700_000])
        for fields in ({}, {"Range": "bytes=-7"}):
            with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError)):
                await asyncio.wait_for(self.ask(api, url, **fields), 5)
        assert (await self.ask(api, url, Range="bytes=0-9"))[1] == self.OCTETS[:10]

    async def test_a_range_at_the_end_of_a_large_file_takes_4_mib_at_most(self, api: Api) -> None:
        octets = b"0123456789abcde\n" * (1 << 20)  # 16 MiB, 22 MiB encoded
        url = await self.url(api, octets, True)
        tracemalloc.start()
        try:
            response, found = await self.ask(api, url, Range="bytes=-16")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (response.status, found) == (206, octets[-16:])
        assert peak < 4 << 20


class TestRaw:
    @pytest.mark.parametrize("in_file", [False, True])
    @pytest.mark.parametrize(
        ("value", "start", "end"), [("bytes=0-4", 0, 5), ("bytes=7-", 7, None), ("bytes=-3", -3, None)]
    )
    async def test_a_range_counts_what_was_received_and_not_what_is_stored(
        self, api: Api, in_file: bool, value: str, start: int, end: int | None
    ) -> None:
        message_id = await stored(api, DOTTED, in_file=in_file)
        response, octets = await self.ask(api, message_id, Range=value)
        expected = DOTTED[start:end]
        at = DOTTED.index(expected, max(start, 0)) if start >= 0 else len(DOTTED) + start
        assert (response.status, octets) == (206, expected)
        assert response.headers["Content-Range"] == f"bytes {at}-{at + len(expected) - 1}/{len(DOTTED)}"

    @pytest.mark.parametrize("in_file", [False, True])
    async def test_behind_the_end_is_416_and_known_is_304(self, api: Api, in_file: bool) -> None:
        message_id = await stored(api, DOTTED, in_file=in_file)
        response, _ = await self.ask(api, message_id, Range=f"bytes={len(DOTTED)}-")
        assert (response.status, response.headers["Content-Range"]) == (416, f"bytes */{len(DOTTED)}")
        response, octets = await self.ask(api, message_id)
        assert (response.status, octets, response.headers["Accept-Ranges"]) == (200, DOTTED, "bytes")
        assert (await self.ask(api, message_id, **{"If-None-Match": response.headers["ETag"]}))[0].status == 304

    async def ask(self, api: Api, message_id: int, **headers: str) -> tuple[aiohttp.ClientResponse, bytes]:
        token = await api.token("viewer")
        return await api.request("GET", f"/v1/messages/{message_id}/raw", token=token, headers=headers)
