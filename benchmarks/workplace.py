"""Where a run takes place: a directory of its own, the compiled programs, the next hop and the webhook's receiver."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.programs import Sink, compile_all
from benchmarks.report import Report


@dataclass(frozen=True, slots=True)
class Workplace:
    directory: Path
    report: Report
    next_hop: Sink
    webhook: Sink

    def program(self, name: str) -> Path:
        return self.directory / name


@contextmanager
def workplace(report: Report, parent: Path | None = None) -> Iterator[Workplace]:
    """A temporary directory (under ``parent``) that others may look into, since Postfix does not stay root."""
    with tempfile.TemporaryDirectory(prefix="relay-bench-", dir=parent) as name:
        directory = Path(name)
        directory.chmod(0o755)
        compile_all(directory)
        with Sink(directory / "smtpsink") as next_hop, Sink(directory / "hooksink") as webhook:
            yield Workplace(directory, report, next_hop, webhook)
