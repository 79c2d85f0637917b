"""`relay check`: what can be found out before mail depends on it, one finding a line, each with what to do.

Nothing is changed and no mail is sent; the next hop is asked as far as RCPT. What is on this machine is looked at
here, DNS in check_dns.py, the next hops and webhooks in check_peers.py.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import structlog

from relay import check_clock, check_cookies, check_dns, check_peers, check_tls, geoip
from relay.check_findings import FAIL, OK, PATIENCE, WARN, Finding, Subject, gather
from relay.config import Config, Endpoint
from relay.control import ControlError, NotRunning, call
from relay.core.check import NAMES, Tell
from relay.store import migrate
from relay.store.store import DATABASE

__all__ = ["FAIL", "OK", "WARN", "Finding", "run", "run_some"]

log = structlog.get_logger()

#: Seconds a running daemon has to say that it runs.
DAEMON_PATIENCE = 5.0
#: Seconds after which a GeoIP database is old: networks change hands, and publishers renew theirs every month.
GEOIP_AGE = 180 * 86_400.0

Check = Callable[[Subject], Awaitable[list[Finding]]]


async def run(config: Config, clock: Callable[[], float] = time.time) -> list[Finding]:
    """Every check; raises nothing that a check could meet."""
    found: dict[str, Sequence[Finding]] = {}
    await run_some(config, NAMES, found.__setitem__, clock)
    return [finding for name in NAMES for finding in found[name]]


async def run_some(
    config: Config,
    names: Collection[str],
    tell: Tell,
    clock: Callable[[], float] = time.time,
    patience: float = PATIENCE,
) -> None:
    """The checks of these names (core/check.py), each told as it ends; each takes at most ``patience`` seconds.

    What cannot be found out about the database is told as the database's, whichever checks are asked for.
    """
    subject, problems = await gather(config, clock(), patience)
    checks = _checks()

    async def one(name: str) -> None:
        found = await _guarded(checks[name], subject)
        tell(name, [*problems, *found] if name == "database" else found)

    if problems and "database" not in names:
        tell("database", problems)
    for name in [name for name in names if name not in REMOTE]:
        await one(name)
    await asyncio.gather(*(one(name) for name in names if name in REMOTE))


#: Checks that wait for others, and not for each other.
REMOTE = frozenset(("tls", "dns", "next_hops", "webhooks"))


def _checks() -> Mapping[str, Check]:
    return {
        "data_dir": data_dir,
        "database": database,
        "disk": disk,
        "clock": check_clock.clock,
        "geoip": geoip_files,
        "daemon": daemon,
        "cookies": check_cookies.cookies,
        "tls": check_tls.certificates,
        "dns": check_dns.names,
        "next_hops": check_peers.next_hops,
        "webhooks": check_peers.webhooks,
    }


async def _guarded(check: Check, subject: Subject) -> list[Finding]:
    what = check.__name__.replace("_", " ")
    try:
        async with asyncio.timeout(subject.patience):
            return await check(subject)
    except TimeoutError:
        text = f"took longer than {subject.patience:g} seconds"
        return [Finding(FAIL, what, text, "try again; look at DNS and network")]
    except OSError as error:
        hint = "see that the file or the network is there, and that the daemon's user may use it"
        return [Finding(FAIL, what, f"could not be checked: {error}", hint)]
    except Exception as error:
        log.exception("check failed unexpectedly", check=what)
        return [Finding(FAIL, what, f"could not be checked: {type(error).__name__}", "the log has the details")]


async def data_dir(subject: Subject) -> list[Finding]:
    """Whether the daemon can keep what it must keep, and keep it to itself."""
    path = subject.config.data_dir
    what = "data_dir"
    if not path.exists():
        parent = next(parent for parent in path.absolute().parents if parent.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            return [Finding(OK, what, f"{path} is not there yet; relay serve makes it")]
        return [Finding(FAIL, what, f"{path} is not there and {parent} is not writable", "make it, for relay's user")]
    if not path.is_dir():
        return [Finding(FAIL, what, f"{path} is not a directory", "choose another data_dir")]
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return [Finding(FAIL, what, f"{path} is not writable", "run this as the daemon's user, or change the owner")]
    found = list(_ownership(path))
    return found or [Finding(OK, what, f"{path} is writable, and the owner's alone")]


def _ownership(path: Path) -> Iterator[Finding]:
    about = path.stat()
    if stat.S_IMODE(about.st_mode) & 0o077:
        mode = stat.S_IMODE(about.st_mode)
        yield Finding(WARN, "data_dir", f"{path} is open to other users (mode {mode:o})", f"chmod 700 {path}")
    keys = sorted((path / "keys").glob("*.key"))
    for file in (path / DATABASE, path / "lock", path / "keys", path / "bodies", *keys):
        try:
            entry = file.stat()
        except FileNotFoundError:
            continue
        if entry.st_uid != about.st_uid:
            text = f"{file} belongs to user {entry.st_uid}, {path} to {about.st_uid}"
            yield Finding(FAIL, "data_dir", text, f"chown -R {about.st_uid} {path}")
        elif file in keys and stat.S_IMODE(entry.st_mode) & 0o077:
            yield Finding(FAIL, "data_dir", f"{file} is open to other users", f"chmod 600 {file}")


async def database(subject: Subject) -> list[Finding]:
    what, path = "database", subject.config.data_dir / DATABASE
    if subject.is_unusable:
        return []  # said already
    if subject.revision is None:
        return [Finding(OK, what, f"{path} is not there yet; relay serve makes it")]
    if subject.revision == migrate.HEAD:
        return [Finding(OK, what, f"schema revision {migrate.HEAD}, {path.stat().st_size / 1e6:.1f} MB")]
    text = f"schema revision {subject.revision}, and this program works with {migrate.HEAD}"
    return [Finding(FAIL, what, text, "relay migrate; if that refuses it, use the newer program")]


async def disk(subject: Subject) -> list[Finding]:
    path = subject.config.data_dir.absolute()
    space = os.statvfs(next(place for place in (path, *path.parents) if place.exists()))
    free, reserve = space.f_bavail * space.f_frsize, subject.config.smtp.min_free
    text = f"{free / 1e6:,.0f} MB free"
    if free < reserve:
        return [
            Finding(
                FAIL,
                "disk",
                f"{text}, less than smtp.min_free ({reserve / 1e6:,.0f} MB): new mail is put off",
                "make room",
            )
        ]
    if free < 3 * reserve or (space.f_files and space.f_favail < 1000):
        return [Finding(WARN, "disk", f"{text}, {space.f_favail} inodes: little is left", "make room")]
    return [Finding(OK, "disk", text)]


async def geoip_files(subject: Subject) -> list[Finding]:
    """Whether visits get a city and a country, and from how old a file. None at all is a choice."""
    directory = subject.config.data_dir / "geoip"
    files = geoip.files_of(subject.config.geoip.files, directory)
    if not files:
        return [Finding(OK, "geoip", f"no database in {directory}: visits get no city; relay geoip install gets one")]
    return [_geoip(subject, file) for file in files]


def _geoip(subject: Subject, file: Path) -> Finding:
    try:
        built = geoip.Database(file).built
    except (OSError, geoip.GeoIpError) as error:
        mend = "relay geoip install" if not subject.config.geoip.files else "put it there, or change geoip.files"
        return Finding(WARN, "geoip", f"{file} cannot be used: {error}", mend)
    text = f"{file.name}, built {geoip.day(built)}"
    if subject.now - built > GEOIP_AGE:
        days = (subject.now - built) / 86_400
        return Finding(WARN, "geoip", f"{text}, {days:.0f} days ago: places change", "relay geoip install, or its like")
    return Finding(OK, "geoip", text)


async def daemon(subject: Subject) -> list[Finding]:
    """Whether it runs, and if not, whether it could listen where it is to."""
    config = subject.config
    path = config.data_dir / "control.sock"
    try:
        status = await asyncio.to_thread(call, path, "status", {}, None, DAEMON_PATIENCE)
    except NotRunning:
        return [Finding(OK, "daemon", "not running"), *_listeners((*config.smtp.listen, *config.http.listen))]
    except ControlError as error:
        return [Finding(FAIL, "daemon", error.message, "look at its log")]
    ports = ", ".join(f"{name} {', '.join(map(str, status[name]))}" for name in ("smtp", "http"))
    return [Finding(OK, "daemon", f"running as process {status['pid']}: {ports}")]


def _listeners(wanted: Iterable[Endpoint | str]) -> Iterator[Finding]:
    for endpoint in wanted:
        if not isinstance(endpoint, Endpoint) or endpoint.port == 0:
            continue
        family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((endpoint.host, endpoint.port))
        except PermissionError:
            text = f"{endpoint} needs a privilege to listen on"
            yield Finding(FAIL, "listen", text, 'let systemd open it: listen = "systemd" (docs/operations.md)')
        except OSError as error:
            yield Finding(FAIL, "listen", f"{endpoint}: {error.strerror}", "choose another, or stop what listens there")
        else:
            yield Finding(OK, "listen", f"{endpoint} is free")
