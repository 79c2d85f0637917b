"""A sync that fails: the writer opens its write-ahead log anew before it believes another one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relay.store.engine import CommitUnknown, Writer
from tests.faults.injection import LOG_CALLS, believes_a_failed_sync, injecting, require_strace, struck
from tests.store_fixtures import opened
from tests.test_store_engine import adding, names

pytestmark = pytest.mark.fault


async def believes(directory: Path) -> bool:
    """Whether the writer does, of which one commit's sync fails."""
    require_strace("a failed sync")
    output = directory / "calls.txt"
    async with opened(directory) as store:
        await store.write(adding("before"))
        writer = store.writer._thread.native_id
        assert writer is not None
        rule = "fdatasync:error=EIO:when=1"
        async with injecting(os.getpid(), rule, only=[writer], output=output, also=LOG_CALLS):
            with pytest.raises(CommitUnknown):
                await store.write(adding("lost"))
            await store.write(adding("after"))
        assert struck(output)
        assert await names(store) == ["before", "after"]
    return believes_a_failed_sync(output)


async def test_after_a_failed_sync_the_log_is_opened_anew(tmp_path: Path) -> None:
    assert not await believes(tmp_path)


async def test_a_writer_that_goes_on_with_the_same_log_would_be_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Writer, "_discard_connection", lambda writer: None)
    assert await believes(tmp_path)
