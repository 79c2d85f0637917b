"""Where an IP address is, by MaxMind-format files (MaxMind DB 2.0): city and country, or nothing.

Both schemas in use are read: the nested one (GeoLite2, GeoIP2, DB-IP's own files: ``city.names.en``,
``country.iso_code``) and the flat one (ip-location-db: ``city``, ``country_code``).

A look-up takes microseconds out of a memory map, so it may be made on the event loop. Files that are replaced, come
or go are noticed within CHECK_EVERY seconds, at the next look-up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import maxminddb
import structlog
from babel import Locale

log = structlog.get_logger()

#: Seconds between two looks at the files.
CHECK_EVERY = 1.0

Address = IPv4Address | IPv6Address
_Stamp = tuple[int, int, int, int]


class GeoIpError(Exception):
    """A file that is no database; the text says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """``city`` without its district, ``country`` as an English name (CLDR; "USA" as the reference writes it)."""

    city: str | None
    country: str | None


NOWHERE = Place(None, None)


class Database:
    """One file, mapped. ``built``: when its publisher made it, in seconds since 1970."""

    def __init__(self, path: Path) -> None:
        """Raises GeoIpError for a file that is no database, OSError for one that cannot be read."""
        self._path = path
        self._stamp = stamp_of(path)
        try:
            self._reader = maxminddb.open_database(path)
            about = self._reader.metadata()
            self._reader.get("::1" if about.ip_version == 6 else "127.0.0.1")  # what is no search tree says so here
        except (maxminddb.InvalidDatabaseError, ValueError) as error:
            raise GeoIpError(str(error)) from None
        self.built = float(about.build_epoch)
        self._ip_version = about.ip_version

    @property
    def stamp(self) -> _Stamp:
        return self._stamp

    def place(self, address: Address) -> Place:
        """Raises GeoIpError where the file is damaged."""
        if address.version > self._ip_version or not self._whole():
            return NOWHERE
        try:
            record = self._reader.get(address)
        except Exception as error:  # somebody else's file: whatever is wrong in it may not stop a page view
            raise GeoIpError(str(error)) from None
        return _place_in(record) if isinstance(record, Mapping) else NOWHERE

    def _whole(self) -> bool:
        """Whether the mapped file still has its length: to read behind the end of one cut short is SIGBUS, our end.

        A file that was replaced is another one and not meant; ours lives on as long as it is mapped.
        """
        try:
            found = self._path.stat()
        except OSError:
            return True
        device, inode, _, size = self._stamp
        return (found.st_dev, found.st_ino) != (device, inode) or found.st_size == size


class GeoIp:
    """The databases of a configuration: the first that knows an address answers.

    ``files`` in their order; without any, what ``directory`` holds as ``*.mmdb``, by name. None of them needs to be
    there. ``clock`` counts seconds.
    """

    def __init__(
        self, files: Sequence[Path], directory: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._configured = tuple(files)
        self._directory = directory
        self._clock = clock
        self._checked = float("-inf")
        self._files: dict[Path, _File] = {}
        self._lacking = False
        _territories()  # 70 ms, which the first page view would else wait for

    def place(self, ip: str) -> Place:
        """City and country of an address; NOWHERE when no file knows it, or when it is none. Raises nothing."""
        if abs(self._clock() - self._checked) >= CHECK_EVERY:
            self._refresh()
        if not self._files:
            return NOWHERE
        address = address_of(ip)
        if address is None:
            return NOWHERE
        return next(filter(_somewhere, (file.place(address) for file in self._files.values())), NOWHERE)

    def _refresh(self) -> None:
        self._checked = self._clock()
        paths = files_of(self._configured, self._directory)
        self._files = {path: self._files.get(path) or _File(path) for path in paths}
        for file in self._files.values():
            file.refresh()
        lacking = not paths
        if lacking and not self._lacking:
            log.info("no GeoIP database: visits have no city and country", directory=str(self._directory))
        self._lacking = lacking


class _File:
    """A path, and the database that was last found whole there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: Database | None = None
        self._tried: _Stamp | None = None
        self._trouble = ""

    def place(self, address: Address) -> Place:
        if self._database is None:
            return NOWHERE
        try:
            return self._database.place(address)
        except GeoIpError as error:
            self._complain("GeoIP database is damaged", error)
            return NOWHERE

    def refresh(self) -> None:
        try:
            stamp = stamp_of(self._path)
        except OSError as error:
            self._database = self._tried = None
            self._complain("GeoIP database cannot be read", error)
            return
        if stamp == self._tried:
            return
        self._tried = stamp
        try:
            self._database = Database(self._path)
        except (GeoIpError, OSError) as error:
            kept = "the old one stays in use" if self._database is not None else "visits get no place from it"
            self._complain(f"GeoIP database not loaded, {kept}", error)
        else:
            self._tried = self._database.stamp
            self._trouble = ""
            log.info("GeoIP database loaded", file=str(self._path), built=day(self._database.built))

    def _complain(self, trouble: str, error: Exception) -> None:
        """Once, however long it lasts."""
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning(trouble, file=str(self._path), error=str(error))


def files_of(files: Sequence[Path], directory: Path | None) -> list[Path]:
    """The paths that a configuration means; those of the directory are there, the others may not be."""
    if files or directory is None:
        return list(files)
    return sorted(directory.glob("*.mmdb"))


def stamp_of(path: Path) -> _Stamp:
    """What changes when a file is rewritten or replaced, or when a link is turned."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def day(seconds: float) -> str:
    """The date of a moment, in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def address_of(ip: str) -> Address | None:
    """An address without zone and IPv4 mapping; None for what is none."""
    try:
        address = ip_address(ip.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _somewhere(place: Place) -> bool:
    return place != NOWHERE


def _place_in(record: Mapping[str, Any]) -> Place:
    city = next(_texts(record.get("city")), None)
    country = record.get("country")
    code = country.get("iso_code") if isinstance(country, Mapping) else record.get("country_code") or country
    name = _country(code) if isinstance(code, str) else None
    return Place(_without_district(city) if city else None, name or next(_names(country), None))


def _texts(value: object) -> Iterator[str]:
    """The English name of a place in either schema."""
    if isinstance(value, str) and value:
        yield value
    yield from _names(value)


def _names(value: object) -> Iterator[str]:
    names = value.get("names") if isinstance(value, Mapping) else None
    name = names.get("en") if isinstance(names, Mapping) else None
    if isinstance(name, str) and name:
        yield name


def _without_district(city: str) -> str:
    """DB-IP writes "Moscow (Tsentralnyy administrativnyy okrug)"; a report by city wants one Moscow."""
    bare, bracket, _ = city.partition(" (")
    return bare if bracket and city.endswith(")") else city


def _country(code: str) -> str | None:
    """The English name of an ISO 3166 code; None for what is none, and for "ZZ", which means nowhere."""
    if code == "US":
        return "USA"
    return None if code == "ZZ" else _territories().get(code)


@cache
def _territories() -> Mapping[str, str]:
    return {code: name for code, name in Locale("en").territories.items() if len(code) == 2}
