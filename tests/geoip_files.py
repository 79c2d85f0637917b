"""Small databases in MaxMind's format, made by the tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdb_writer import MMDBWriter
from netaddr import IPSet

FLAT = {"161.185.160.0/24": {"city": "New York", "country_code": "US", "state1": "New York", "latitude": 40.7}}


def write(path: Path, networks: Mapping[str, Any], version: int = 4) -> Path:
    """A database at ``path``, put there as a whole."""
    writer = MMDBWriter(version, "Test-City", description="made by a test", ipv4_compatible=version == 6)
    for network, record in networks.items():
        writer.insert_network(IPSet([network]), record)
    part = path.with_suffix(".part")
    writer.to_db_file(str(part))
    return part.replace(path)
