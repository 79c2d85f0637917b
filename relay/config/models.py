"""relay.toml as frozen models: one class a table, one field a key, with its default (docs/configuration.md).

Strict: no value is coerced, no unknown key passes. What needs more than one key to be judged is in ``rules``.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from relay.config import fields as f
from relay.config.webhook import HookOptions, check_template
from relay.config.webhook import Section as Section
from relay.core.channel import Channel, SourceRule
from relay.core.model import IpDetail, Method
from relay.core.site import LeaseOn, SiteSettings, Touch

_LOOPBACK = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))

#: How many names are generated for a pool that has neither a list nor a size.
DEFAULT_POOL_SIZE = 30


class Storage(Section):
    url: f.Storage = "sqlite"


class Smtp(Section):
    listen: f.Listens = (f.Endpoint("127.0.0.1", 2525),)
    max_message_size: Annotated[int, Field(ge=65536, le=2 << 30)] = 52_428_800  # RFC 5321 §4.5.3.1.7 wants 64K at least
    tls_cert: f.OptionalFilePath = None
    tls_key: f.OptionalFilePath = None
    bare_lf: Literal["normalise", "refuse"] = "normalise"
    min_free: f.Size = 104_857_600


class Http(Section):
    listen: f.Listens = (f.Endpoint("127.0.0.1", 8080),)
    public_url: f.PublicUrl = "http://127.0.0.1:8080"
    trusted_proxies: f.Listed[f.Network] = ()
    proxy_header: Literal["X-Forwarded-For", "Forwarded"] = "X-Forwarded-For"
    script_path: f.UrlPath = "/mailtrack.js"
    bind_path: f.UrlPath = "/v1/bind"
    tls_cert: f.OptionalFilePath = None
    tls_key: f.OptionalFilePath = None
    max_body: Annotated[int, Field(ge=1024, le=1 << 30)] = 1_048_576
    max_bind_body: Annotated[int, Field(ge=1024, le=1 << 20)] = 16_384
    links_live_for: Annotated[float, f.between("1m", "400d")] = 86_400.0


class Limits(Section):
    exempt: f.Listed[f.Network] = _LOOPBACK
    recipients: f.Count = 100
    connections: f.Count = 1000
    connections_per_address: f.Count = 50
    commands: f.Count = 1000
    errors: f.Count = 20
    idle_commands: f.Count = 20
    unknown_recipients: f.Count = 5
    tarpit: Annotated[float, f.between("0s", "2m")] = 30.0
    command_timeout: Annotated[float, f.between("100ms", "1h")] = 300.0
    data_timeout: Annotated[float, f.between("100ms", "1h")] = 180.0
    data_grace: Annotated[float, f.between("100ms", "1h")] = 60.0
    data_rate: f.Size = 256
    header_size: Annotated[int, Field(ge=4096, le=262_144)] = 262_144
    header_fields: f.Count = 1000
    received_fields: f.Count = 50
    binds_per_address_per_minute: f.Count = 120
    binds_per_site_per_minute: f.Count = 60_000
    leases_per_address_per_minute: f.Count = 60
    api_failures_per_address_per_minute: f.Count = 30
    login_failures_per_address_per_minute: f.Count = 10


class Dns(Section):
    nameservers: f.Listed[f.Nameserver] = ()
    timeout: Annotated[float, f.between("100ms", "1m")] = 10.0


class Forward(Section):
    next_hop: f.OptionalNextHop = Field(default=None, repr=False)
    mx_port: f.Port = 25
    retry_for: Annotated[float, f.between("0s", "30d")] = 432_000.0
    per_destination: f.Count = 20


class Webhooks(Section):
    allow_private_addresses: bool = False


class Geoip(Section):
    files: f.Listed[f.FilePath] = ()


class Attribution(Section):
    window: Annotated[float, f.between("0s", "30d")] = 86_400.0
    known_sender: Annotated[float, f.between("0s", "3650d")] = 90 * 86_400.0


class Privacy(Section):
    visitor_ip: Annotated[IpDetail, Strict(False)] = IpDetail.FULL


class Retention(Section):
    raw: Annotated[float, f.between("1h", "36500d")] = 180 * 86_400.0
    messages: Annotated[float, f.between("1h", "36500d")] = 730 * 86_400.0
    visits: Annotated[float, f.between("1h", "36500d")] = 400 * 86_400.0
    visitor_ip: Annotated[float, f.between("1h", "36500d")] = 400 * 86_400.0
    routes: Annotated[float, f.between("1h", "36500d")] = 400 * 86_400.0
    changes: Annotated[float, f.between("1h", "36500d")] = 1095 * 86_400.0


class Extract(Section):
    workers: Annotated[int, Field(ge=1, le=64)] = 2


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Target(Section):
    address: f.Mailbox
    method: Annotated[Method, Strict(False)] = Method.POOL
    domain: f.Domain = None
    pool: f.Listed[f.Mailbox] = ()
    pool_size: Annotated[int, Field(ge=1, le=10_000)] | None = None
    lease: Annotated[float, f.between("1s", "30d")] = 900.0
    forward_to: f.OptionalMailbox = None
    next_hop: f.OptionalNextHop = Field(default=None, repr=False)
    additional: bool = False

    @property
    def generated(self) -> int:
        """How many substitutes are to be generated at ``domain`` for this target's pool."""
        if self.method is not Method.POOL or self.pool:
            return 0
        return self.pool_size or DEFAULT_POOL_SIZE


class Static(Section):
    address: f.Mailbox
    target: f.Mailbox
    label: f.ShortText


class Webhook(HookOptions):
    """Within its site a webhook is known by its URL: that is how its state is found again after a restart."""

    url: f.WebhookUrl
    secret: f.WebhookSecret = Field(repr=False)
    previous_secret: Annotated[str | None, f.by(f.optional(f.webhook_secret))] = Field(default=None, repr=False)
    enabled: bool = True

    @model_validator(mode="after")
    def _template_works(self) -> Webhook:
        check_template(self.url, self)
        return self


class SourceOf(Section):
    """A rule of the site's own: visits that are so came from ``marker``."""

    marker: f.ShortText
    channel: Annotated[Channel | None, Strict(False)] = None
    referrer: f.Domain = None
    parameter: f.OptionalShortText = None
    value: f.OptionalShortText = None
    page: f.OptionalShortText = None


class SiteOptions(Section):
    """What a site is told besides its name and addresses: the same in relay.toml and in the API."""

    origins: Annotated[f.Listed[f.Origin], Field(min_length=1, max_length=100)]
    tracking: bool = True
    send_to_crm: bool = True
    bots: Literal["none", "lease"] = "none"
    lease_on: Annotated[LeaseOn, Strict(False)] = LeaseOn.VIEW
    reserve: Annotated[int, Field(ge=0, le=90)] = 10
    visit_timeout: Annotated[float, f.between("1m", "400d")] = 14 * 86_400.0
    touch: Annotated[Touch, Strict(False)] = Touch.LAST
    visit_cookie: f.OptionalCookieName = "roistat_visit"
    marker_cookie: f.OptionalCookieName = "roistat_marker"
    cookie_domain: f.Domain = None
    server_cookies: bool = False
    respect_gpc: bool = False
    google_analytics: bool = False
    metrica: Annotated[int, Field(ge=0, le=10**12)] = 0
    require_visit: bool = True
    skip_bounces: bool = True
    skip_automatic: bool = True
    sources: Annotated[f.Listed[SourceOf], Field(max_length=1000)] = ()

    def settings(self) -> SiteSettings:
        return SiteSettings(
            lease_on=self.lease_on,
            reserve=self.reserve,
            touch=self.touch,
            visit_cookie=self.visit_cookie,
            marker_cookie=self.marker_cookie,
            cookie_domain=self.cookie_domain,
            server_cookies=self.server_cookies,
            respect_gpc=self.respect_gpc,
            google_analytics=self.google_analytics,
            metrica=self.metrica,
            rules=tuple(SourceRule(**dict(rule)) for rule in self.sources),
        )

    def conditions(self) -> dict[str, bool]:
        """What is asked of a letter before it is posted, as relay/core/conditions.py names it."""
        return {
            "require_visit": self.require_visit,
            "refuse_bounces": self.skip_bounces,
            "refuse_automatic": self.skip_automatic,
        }


class Site(SiteOptions):
    name: f.SiteName
    key: f.SiteKey
    sources: f.Listed[SourceOf] = Field(default=(), alias="source")
    targets: f.Listed[Target] = Field(default=(), alias="target")
    statics: f.Listed[Static] = Field(default=(), alias="static")
    webhooks: Annotated[f.Listed[Webhook], Field(max_length=20)] = Field(default=(), alias="webhook")


class Config(Section):
    """The whole file. Paths are absolute or relative to the directory the file lies in, already joined with it."""

    hostname: f.Hostname
    operator: f.OptionalMailbox = None
    data_dir: f.FilePath = Field(default=Path("var"), validate_default=True)
    storage: Storage = Storage()
    smtp: Smtp = Smtp()
    http: Http = Http()
    limits: Limits = Limits()
    dns: Dns = Dns()
    forward: Forward = Forward()
    webhooks: Webhooks = Webhooks()
    geoip: Geoip = Geoip()
    attribution: Attribution = Attribution()
    privacy: Privacy = Privacy()
    retention: Retention = Retention()
    extract: Extract = Extract()
    log: Log = Log()
    sites: f.Listed[Site] = Field(default=(), alias="site")
