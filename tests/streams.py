"""What tests do with the octets of a connection."""

from __future__ import annotations

import asyncio


async def send(writer: asyncio.StreamWriter, octets: bytes) -> None:
    """Raises ConnectionResetError when the connection is known to be lost, on whatever event loop."""
    if writer.is_closing():
        raise ConnectionResetError
    writer.write(octets)
    await writer.drain()
