"""Every file and socket call of a delivery fails once, and at every one the daemon is killed once.

A clean delivery is traced first: which thread makes which call how often on the way from the sender to the next hop and
the CRM. Then for each (thread, call, occurrence) a letter is sent while strace makes just that one fail or kills the
daemon there. Whatever is answered 250 is there whole after a ``kill -9``, the daemon goes on by itself, and the next
letter is taken. In the soak all calls are struck on the way to a fixed next hop, and those on sockets also where it is
looked up, or wants encryption and a login (ways.py).
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.calls import A_WAY, CALLS, KILL, PUT_OFF, Case, Sweep, cases, chosen, is_on_socket
from tests.faults.injection import (
    LOG_CALLS,
    believes_a_failed_sync,
    ended,
    injecting,
    is_dead,
    made,
    require_strace,
    struck,
    syncs,
    threads,
    tracing,
)
from tests.faults.test_kill import drained, killed
from tests.faults.ways import PARTS, WAYS, Way, world_by
from tests.ledger import Account, Ledger, seeded

pytestmark = pytest.mark.fault

#: What ends the process (libuv calls abort), in strace's words: a thread cannot write the one to the eventfd(2) that
#: wakes the event loop, which cannot read it, or cannot wait for one more descriptor. No system in order does that; the
#: daemon is started again, as after a kill.
_ENDS = re.compile(r'(?:write\(\d+, "\\1(?:\\0){7}", 8\)|read\(\d+, \S+, 1024\)|epoll_ctl\(.*\)) += -1 .*\(INJECTED\)')
#: Octets of the letter that goes to a file of its own. Nothing of it is text, so that nothing of it is indexed.
OCTETS = 3_000_000
UNREAD = b"Content-Type: application/octet-stream\r\n"
#: Cases of which the suite tries so many: the daemon takes seconds to start again after each kill.
KILLS, ERRORS = 1, 16


def role(pid: int, thread: int) -> str:
    """What a thread of the daemon is there for. They are started in this order: loop, writer, four readers."""
    place = threads(pid).index(thread)
    return ("loop", "writer", *["readers"] * 4)[place] if place < 6 else "pool"


def bearers(pid: int, wanted: str) -> list[int]:
    return [thread for thread in threads(pid) if role(pid, thread) == wanted]


@dataclass
class DaemonSweep(Sweep):
    """And what became of the daemon."""

    way: Way = field(kw_only=True)
    under_way: Counter[int] = field(default_factory=Counter)
    ends: list[Case] = field(default_factory=list)  # errors that ended the daemon

    async def trace(self, output: Path) -> list[Case]:
        """All cases, by one clean delivery of each size."""
        found: list[Case] = []
        pid = self.relay.daemon.pid
        wanted = is_on_socket if self.way.only_sockets else lambda call, kind: True
        for large in self.way.sizes:
            await self.goes_through(await self.send(large=large))  # once before, so that all threads are there
            async with tracing(pid, output, CALLS):
                await self.goes_through(await self.send(large=large))
            found += cases(output, lambda thread: role(pid, thread), large, wanted=wanted)
            assert {role(pid, thread) for thread, call in made(output) if call == "fdatasync"} == {"writer"}
        assert {(one.tls, one.user) for one in self.relay.sink.accepted} == {(self.way.tls, self.way.user)}
        return found

    async def goes_through(self, number: int) -> None:
        """Until the CRM has the post about a letter, and its first attempt is over."""
        await self.relay.until(lambda: self.was_tried(number), bool)
        await self.arrived(number)

    async def was_tried(self, number: int) -> bool:
        """Whether the next hop has the letter, or the log says why not: a line of it may be lost to a fault, too."""
        message, line = self.ledger.acknowledged.get(number), b"\r\nSubject: letter %d\r\n" % number
        return any(line in received.wire[:4096] for received in self.relay.sink.accepted) or any(
            (entry.get("event"), entry.get("message")) == ("delivery", message) for entry in self.relay.daemon.log
        )

    async def bearers(self, case: Case) -> list[int]:
        """The threads of its name. Those of the pool are there when a large letter has needed them."""
        pid = self.relay.daemon.pid
        if not (found := bearers(pid, case.thread)):
            await self.goes_through(await self.send(large=True))
            found = bearers(pid, case.thread)
        assert found, case
        return found

    async def calm(self) -> None:
        """What was put off goes its way now: it would leave the next letter none, or take the call that is to fail."""
        await self.relay.retry_all()
        await drained(self.relay)

    async def kill(self, case: Case) -> None:
        """The daemon dies at this call, and is started again."""
        pid = self.relay.daemon.pid
        async with asyncio.TaskGroup() as group:
            async with injecting(pid, case.rule, only=await self.bearers(case)):
                number = self.ledger.begun
                group.create_task(self.send(large=case.large))
                strikes = group.create_task(ended(pid, A_WAY))
                arrives = group.create_task(self.goes_through(number))
                await asyncio.wait([strikes, arrives], return_when=asyncio.FIRST_COMPLETED)
            if is_dead(pid):
                await killed(self.relay, self.under_way)
            else:
                self.missed.append(case)
            strikes.cancel()
        await self.calm()

    async def fail(self, case: Case, output: Path) -> None:
        """This call fails; the letter is taken at last, and so is the next one, by the same process but for _ENDS."""
        pid = self.relay.daemon.pid
        also = LOG_CALLS if case.call == "fdatasync" else ""
        async with asyncio.TaskGroup() as group:
            async with injecting(pid, case.rule, only=await self.bearers(case), output=output, also=also):
                number = self.ledger.begun
                group.create_task(self.send(large=case.large))
                tried = group.create_task(self.relay.until(lambda: self.was_tried(number), bool))
                ends = group.create_task(ended(pid, A_WAY))
                await asyncio.wait([tried, ends], return_when=asyncio.FIRST_COMPLETED)
                try:
                    async with asyncio.timeout(PUT_OFF):
                        await self.arrived(number)
                except TimeoutError:
                    pass  # it is on its way, and must be there at the end
            if not struck(output):
                self.missed.append(case)
            self.must_be_synced(case, number, output)
            if is_dead(pid) and _ENDS.search(output.read_text(errors="replace")):
                self.ends.append(case)
                await killed(self.relay, self.under_way)
                pid = self.relay.daemon.pid
            ends.cancel()
        await self.send()
        assert not is_dead(pid), f"the daemon ended at {case}; {self.relay.daemon.log[-20:]}"
        await self.calm()

    def must_be_synced(self, case: Case, number: int, output: Path) -> None:
        """No 250 rests upon a sync that failed. That a kill keeps what the system has in memory would hide it.

        A body that was not synced is written anew, to another file, and the log is opened anew: to sync the same one
        again would prove nothing.
        """
        assert not believes_a_failed_sync(output), f"the log was not opened anew: {case}"
        found, heard = syncs(output), self.ledger.heard.get(number, math.inf)
        for failed in (time for time, succeeded in found if not succeeded and time < heard):
            if case.call == "fsync":
                assert self.ledger.tries[number] > 1, f"taken at once although the body's sync failed: {case}"
            else:
                assert any(succeeded and failed < time < heard for time, succeeded in found), f"250 unsynced: {case}"

    async def settle(self) -> Account:
        """Kill and start once more, wait for the end of all work, and draw up the account."""
        relay = self.relay
        await killed(relay, self.under_way)
        await self.calm()
        for (subject,) in await relay.rows(
            "SELECT messages.subject FROM attempts JOIN deliveries ON deliveries.id = attempts.delivery_id "
            "JOIN messages ON messages.id = deliveries.message_id WHERE attempts.outcome = 'ambiguous'"
        ):
            self.under_way[int(subject.removeprefix("letter "))] += 1
        account = await asyncio.to_thread(Account.of, relay.daemon, relay.sink.accepted, relay.crm.posts)
        account.must_balance(self.ledger, self.under_way)
        assert await relay.row("PRAGMA integrity_check") == ("ok",)
        return account


@pytest.mark.parametrize(("name", "part"), PARTS)
async def test_whatever_call_fails_or_is_the_last_nothing_acknowledged_is_lost(
    name: str, part: int, tmp_path: Path
) -> None:
    require_strace("a fault at every call")
    way = WAYS[name]
    chance = seeded("every call")
    large = set[int]()
    ledger = Ledger(chance.randrange(10**6), large.__contains__, OCTETS, UNREAD)
    async with world_by(name, tmp_path) as relay:
        await asyncio.to_thread(relay.daemon.start)
        sweep = DaemonSweep(relay, ledger, large, way=way)
        output = tmp_path / "calls.txt"
        found = await sweep.trace(output)
        tried = chosen(found, chance, slice(part, None, way.parts), KILLS, ERRORS)
        for case in tried:
            try:
                await (sweep.kill(case) if case.fault == KILL else sweep.fail(case, output))
            except Exception as error:
                raise AssertionError(f"{case}; {relay.daemon.log[-20:]}") from error
        account = await sweep.settle()
        faults = ", ".join(f"{count} {fault}" for fault, count in Counter(case.fault for case in tried).items())
        print(
            f"{name}: {len(tried)} of {len(found)} cases: {faults}; never reached {len(sweep.missed)}; "
            f"{len(sweep.ends)} ended the daemon; "
            f"{len(ledger.acknowledged)} letters acknowledged, put off {dict(ledger.put_off)}, {ledger.resent} sent "
            f"again by their sender, {account.repeats} came twice, {account.reposts} were posted twice"
        )
        sweep.must_have_struck(tried)
