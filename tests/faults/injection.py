"""strace on the running daemon: a signal or an error at exactly the N-th of some system call."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from functools import cache

#: Seconds for strace to take hold. Reached only when a test fails.
PATIENCE = 20.0


@cache
def strace_problem() -> str | None:
    """Why strace cannot inject anything here; None when it can."""
    if shutil.which("strace") is None:
        return "strace is not installed (Debian: apt-get install strace)"
    tried = subprocess.run(
        ["strace", "-qq", "-o", "/dev/null", "-e", "inject=getppid:retval=7", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        return f"strace does not work here: {(tried.stderr or 'no reason given').strip()[-200:]}"
    return None


@contextlib.asynccontextmanager
async def injecting(pid: int, *rules: str) -> AsyncIterator[None]:
    """Rules such as "fdatasync:signal=SIGKILL:when=3" in force on every thread of a process; counts are per thread.

    Inside the block they are in force; leaving it takes strace away, and the process goes on if it still lives.
    """
    calls = ",".join(rule.partition(":")[0] for rule in rules)
    options = [option for rule in rules for option in ("-e", f"inject={rule}")]
    tracer = await asyncio.create_subprocess_exec(
        *["strace", "-f", "-o", "/dev/null", "-p", str(pid), "-e", f"trace={calls}", *options],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert tracer.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE):
            line = await tracer.stderr.readline()
        assert b"attached" in line, line
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            tracer.terminate()
        await tracer.communicate()


async def ended(pid: int, timeout: float) -> bool:
    """Whether a child process of ours ends within ``timeout`` seconds. It is left to its owner to be waited for."""
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(pid)
    over = asyncio.Event()
    loop.add_reader(descriptor, over.set)
    try:
        async with asyncio.timeout(timeout):
            await over.wait()
        return True
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
