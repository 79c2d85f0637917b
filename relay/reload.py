"""SIGHUP: relay.toml is read again, and what can change in a running daemon does.

    read, check ─▶ certificates load ─▶ sites, in one transaction ─▶ limits, policy, log level ─▶ what needs a restart

What is refused before the last step changes nothing: the daemon goes on as it was, and the log names the key.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from pydantic import BaseModel

from relay import config as configuration
from relay import logs
from relay.config import Config, ConfigError, Http, Problem, Smtp
from relay.declare import definitions, log_removed
from relay.intake import Policy
from relay.smtp_limits import Limits, Settings
from relay.store.engine import StoreUnavailable
from relay.store.messages import Evidence
from relay.store.routes import AddressTaken
from relay.store.sites import NameTaken, declare_all
from relay.tls import TlsFiles
from webapi import app as web_app

if TYPE_CHECKING:
    from relay.app import Daemon

log = structlog.get_logger()

#: Keys and tables that change in a running daemon; what else has changed needs a restart.
RELOADED = (
    "operator",
    "smtp.max_message_size",
    "smtp.tls_cert",
    "smtp.tls_key",
    "smtp.bare_lf",
    "smtp.min_free",
    "http.tls_cert",
    "http.tls_key",
    "limits",
    "attribution",
    "log.level",
    "site",
)

#: What waits for a restart with a key that needs one, when both have changed: the file was judged with both
#: (config/rules.py), and the new value of the one may not go with the old value of the other. Operator and sites are
#: judged with each other, too, so neither waits alone.
JUDGED_TOGETHER: dict[str, tuple[str, ...]] = {
    "smtp.listen": ("operator", "site"),
    "http.listen": ("operator", "site"),
    "http.public_url": ("operator", "site"),
    "forward.next_hop": ("operator", "site"),
    "retention.visits": ("attribution.window",),
    "retention.routes": ("attribution.window",),
}


def policy(config: Config) -> Policy:
    """What intake goes by."""
    return Policy(
        hostname=config.hostname,
        operator=config.operator,
        next_hop=config.forward.next_hop,
        retry_for=config.forward.retry_for,
        evidence=Evidence(config.attribution.window, config.attribution.known_sender, kept=config.retention.visits),
        min_free=config.smtp.min_free,
        received_limit=config.limits.received_fields,
        header_size=config.limits.header_size,
        header_fields=config.limits.header_fields,
    )


def smtp_settings(config: Config) -> Settings:
    """What the SMTP server goes by. Raises OSError when its certificate cannot be loaded."""
    limits, smtp = config.limits, config.smtp
    return Settings(
        hostname=config.hostname,
        max_message_size=smtp.max_message_size,
        bare_lf=smtp.bare_lf,
        tls=certificate(smtp),
        limits=Limits(
            recipients=limits.recipients,
            connections=limits.connections,
            connections_per_address=limits.connections_per_address,
            commands=limits.commands,
            errors=limits.errors,
            idle_commands=limits.idle_commands,
            unknown_recipients=limits.unknown_recipients,
            tarpit=limits.tarpit,
            command_timeout=limits.command_timeout,
            data_timeout=limits.data_timeout,
            data_grace=limits.data_grace,
            data_rate=limits.data_rate,
            exempt=tuple(limits.exempt),
        ),
    )


def certificate(table: Smtp | Http) -> TlsFiles | None:
    """The pair that a table of relay.toml names, if it does. Raises OSError when it cannot be loaded."""
    return TlsFiles(table.tls_cert, table.tls_key) if table.tls_cert and table.tls_key else None


def _refuse_bad_certificates(config: Config) -> None:
    """Raises ConfigError."""
    problems = []
    for name, table in (("smtp", config.smtp), ("http", config.http)):
        try:
            certificate(table)
        except OSError as error:
            reason = (error.reason if isinstance(error, ssl.SSLError) else error.strerror) or error
            problems.append(Problem(f"{name}.tls_cert", f"{table.tls_cert} with {table.tls_key}: {reason}"))
    if problems:
        raise ConfigError(problems)


class Reloader:
    """Reads ``path`` again for a running daemon. One at a time: who asks meanwhile is served by one more reading."""

    def __init__(self, path: Path, daemon: Daemon, clock: Callable[[], float]) -> None:
        self._path = path
        self._daemon = daemon
        self._clock = clock

    async def run(self, asked: asyncio.Event, begun: Callable[[], object], done: Callable[[str], object]) -> None:
        """Reload whenever ``asked`` is set, until cancelled; ``done`` is told in a few words what came of it."""
        while True:
            await asked.wait()
            asked.clear()
            begun()
            done(await self.reload())

    async def reload(self) -> str:
        """Reload once; what came of it, for people."""
        try:
            wanted = await asyncio.to_thread(configuration.load, self._path)
            changed, restart = await self._apply(wanted)
        except (ConfigError, AddressTaken, NameTaken, StoreUnavailable) as error:
            log.error("configuration not reloaded, the old one stays in use", error=str(error))
            return "the configuration is refused, the old one stays in use; the log says why"
        except Exception:
            log.exception("configuration not reloaded")
            return "the configuration could not be reloaded; the log says why"
        log.info("configuration reloaded", changed=", ".join(changed))
        logs.set_level(self._daemon.config.log.level)
        self._daemon.poster.set_log_level(self._daemon.config.log.level)
        if restart:
            log.warning("these settings need a restart", keys=", ".join(restart))
            return f"configuration reloaded; these settings need a restart: {', '.join(restart)}"
        return "configuration reloaded"

    async def _apply(self, wanted: Config) -> tuple[list[str], list[str]]:
        """Bring the daemon to ``wanted``; the keys that have changed now, and those that need a restart."""
        daemon = self._daemon
        keys = list(differing(daemon.config, wanted))
        _refuse_bad_certificates(wanted)
        switched = daemon.https is None or wanted.http.tls_cert is None  # TLS on or off is another server
        waiting = {key for cause in keys for key in JUDGED_TOGETHER.get(cause, ())}
        waiting.update(key for key in keys if switched and key.startswith("http."))
        changed = [key for key in keys if is_reloaded(key) and key not in waiting]
        now_in_use = with_keys(daemon.config, wanted, changed)
        settings = smtp_settings(now_in_use)
        if "site" in changed:
            declared, now = definitions(now_in_use, daemon.keys.seal), self._clock()
            for name in await daemon.store.redefine(lambda tx: declare_all(tx, declared, now)):
                log_removed(name)
            daemon.poster.wake()
        daemon.config = now_in_use
        daemon.smtp.configure(settings)
        daemon.intake.configure(policy(now_in_use))
        web_app.limit(daemon.web, now_in_use.limits)
        if daemon.https is not None and now_in_use.http.tls_cert and now_in_use.http.tls_key and not switched:
            daemon.https.use(now_in_use.http.tls_cert, now_in_use.http.tls_key)
        return changed, [key for key in keys if key not in changed]


def is_reloaded(key: str) -> bool:
    return key in RELOADED or key.partition(".")[0] in RELOADED


def differing(one: BaseModel, other: BaseModel, path: str = "") -> Iterator[str]:
    """Keys of relay.toml ("smtp.min_free") that two configurations have different values for; sites count as one."""
    for name, field in type(one).model_fields.items():
        here, there = getattr(one, name), getattr(other, name)
        if isinstance(here, BaseModel):
            yield from differing(here, there, f"{path}{name}.")
        elif here != there:
            yield path + (field.alias or name)


def with_keys(base: Config, wanted: Config, keys: list[str]) -> Config:
    """``base`` with the values that ``wanted`` has for these keys."""
    tables: dict[str, dict[str, object]] = {}
    top: dict[str, object] = {}
    for key in keys:
        table, _, name = key.rpartition(".")
        if table:
            tables.setdefault(table, {})[name] = getattr(getattr(wanted, table), name)
        else:
            name = "sites" if key == "site" else key
            top[name] = getattr(wanted, name)
    for table, values in tables.items():
        top[table] = getattr(base, table).model_copy(update=values)
    return base.model_copy(update=top)
