"""The instruments of benchmarks/: they compile, they count right, and they notice what a server did wrong."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks import mail, processes
from benchmarks.programs import Figures, LoadFailed, Sink, compile_all, run_client
from benchmarks.relay import Relay
from benchmarks.report import Report
from benchmarks.workplace import workplace
from tests.smtp_sink import SmtpSink

pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="SKIPPED LOUDLY: gcc is not installed"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="SKIPPED LOUDLY: the benchmarks need Linux"),
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every program, compiled with all warnings as errors."""
    directory = tmp_path_factory.mktemp("programs")
    compile_all(directory)
    return directory


@pytest.fixture
def sink(programs: Path) -> Iterator[Sink]:
    with Sink(programs / "smtpsink") as found:
        yield found


def load(programs: Path, port: int, **options: str | int | float | bool) -> Figures:
    return run_client(programs / "smtpload", 20, **{"port": port, "run": "r", "messages": 50, **options})


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (4096, {}),
        (4096, {"per_connection": 7}),
        (4096, {"per_connection": 0, "pipelining": True}),
        (4096, {"rate": 500.0}),
        (100, {}),
        (102_400, {"pipelining": True}),
        (102_400, {"plain": True}),
        (3_000_000, {"messages": 5}),
    ],
)
def test_every_message_arrives_once_and_unchanged(
    programs: Path, sink: Sink, size: int, options: dict[str, float]
) -> None:
    count = int(options.get("messages", 50))
    sink.order(f"reset r {count} {size} {int(options.get('plain', 0))} track.test")
    sent = load(programs, sink.port, size=size, **options)
    assert (sent["sent"], sent["failed"], sent["unfinished"], sent["errors"]) == (count, 0, 0, [])
    found = sink.figures()
    assert found["unique"] == count
    assert {found[what] for what in ("duplicate", "altered", "misdirected", "foreign")} == {0}
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["latency_ms"]["max"]


async def one_message(programs: Path) -> bytes:
    """What the load client sends as message 0 of run "r", in wire form without the final dot."""
    async with SmtpSink() as server:
        await asyncio.to_thread(load, programs, server.port, messages=1)
        return server.messages[0].wire


def deliver(port: int, wire: bytes, recipient: str = "real0@crm.test") -> None:
    dialogue = [b"EHLO x\r\n", b"MAIL FROM:<a@b.test>\r\n", f"RCPT TO:<{recipient}>\r\n".encode(), b"DATA\r\n"]
    with socket.create_connection(("127.0.0.1", port), 10) as client, client.makefile("rb") as replies:
        assert replies.readline().startswith(b"220 ")
        for step in [*dialogue, wire + b".\r\n"]:
            client.sendall(step)
            while replies.readline()[3:4] == b"-":
                pass


async def test_header_fields_before_the_message_are_no_change(programs: Path, sink: Sink) -> None:
    wire = await one_message(programs)
    sink.order("reset r 1 4096 0 crm.test")
    deliver(sink.port, b"Received: from x\r\n\tby y\r\nX-Visit-Id: 1\r\n" + wire)
    assert (sink.figures()["unique"], sink.figures()["altered"]) == (1, 0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"Subject: Enquiry", b"Subject: enquiry"),
        (b"Message-ID:", b"Message-Id:"),
        (b"MIME-Version: 1.0\r\n", b""),
        (b"\r\n..", b"\r\n."),
        (b" of r\r\n", b" of r \r\n"),
        (b"The end", b"The\r\nend"),
    ],
)
async def test_every_change_to_a_message_is_noticed(programs: Path, sink: Sink, before: bytes, after: bytes) -> None:
    wire = await one_message(programs)
    assert before in wire
    sink.order("reset r 1 4096 0 crm.test")
    deliver(sink.port, wire.replace(before, after, 1))
    assert (sink.figures()["unique"], sink.figures()["altered"]) == (1, 1)


async def test_copies_strangers_and_wrong_recipients_are_counted(programs: Path, sink: Sink) -> None:
    wire = await one_message(programs)
    sink.order("reset r 1 4096 0 crm.test")
    deliver(sink.port, wire, "u0@track.test")
    deliver(sink.port, wire)
    deliver(sink.port, b"Subject: spam\r\n\r\nhello\r\n")
    found = sink.figures()
    assert (found["unique"], found["misdirected"], found["duplicate"], found["foreign"]) == (1, 1, 1, 1)


async def test_the_load_client_says_what_a_server_refused(programs: Path) -> None:
    async with SmtpSink(script={"rcpt": ["450 4.2.1 later", None]}) as server:
        sent = await asyncio.to_thread(load, programs, server.port, messages=3, connections=1)
    assert (sent["sent"], sent["failed"], sent["errors"]) == (2, 1, ["RCPT: 450 4.2.1 later "])


def test_a_client_that_cannot_do_its_work_says_so(programs: Path) -> None:
    with pytest.raises(LoadFailed, match="--run is missing"):
        run_client(programs / "smtpload", 5, port=1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = run_client(programs / "smtpload", 1, port=silent.getsockname()[1], run="r", messages=2)
    assert (found["sent"], found["unfinished"]) == (0, 2)


def test_the_webhook_receiver_counts_posts_and_events(programs: Path) -> None:
    with Sink(programs / "hooksink") as sink:
        for event in ("evt_1", "evt_2", "evt_1"):
            request = urllib.request.Request(f"http://127.0.0.1:{sink.port}/", b"{}" * 100_000)
            request.add_header("webhook-id", event)
            with urllib.request.urlopen(request, timeout=10) as response:
                assert response.status == 200
        assert sink.figures() == {"posts": 3, "events": 2, "octets": 600_000}
        assert sink.order("reset") == "ok"
        assert sink.figures() == {"posts": 0, "events": 0, "octets": 0}


def test_the_relay_is_measured_and_verified(tmp_path: Path) -> None:
    few = mail.Workload("a few", 4096, 50, 5, 10, 0.0)
    with ExitStack() as stack:
        place = stack.enter_context(workplace(Report(), tmp_path))
        relay = stack.enter_context(Relay(place.directory / "relay", place.next_hop.port, place.webhook.port))
        mail.prepare(place, relay, mail.RECIPIENTS)
        run = mail.run(place, relay, few, mail.Options(), few.messages)
    assert run.faults == ()
    assert min(run.forwarded, run.accepted, run.finished or 0.0, run.cpu) > 0
    assert run.memory > 10_000_000
    assert run.drained is not None


def test_a_broken_promise_is_a_fail_and_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report({"mail": {"rate": 1}})
    report.judge("fast", True, "2 x")
    assert report.finish(None) == 0
    report.judge("small", False, "400 MB")
    assert report.finish(tmp_path / "figures.json") == 1
    assert "  FAIL  small: 400 MB\n" in capsys.readouterr().out
    assert '"failed": [\n      "small"\n    ]' in (tmp_path / "figures.json").read_text()


def test_cpu_and_memory_of_this_process_are_read() -> None:
    before, until = processes.cpu_seconds(os.getpid()), time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert processes.cpu_seconds(os.getpid()) - before >= 0.03
    assert processes.pss(os.getpid()) > 5_000_000
    assert os.getpid() in processes.tree(os.getppid())
