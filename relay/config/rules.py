"""What more than one key must agree on. Each rule yields its problems; none depends on another having passed."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from relay.config import fields
from relay.config.outline import Placed, SiteOutline, Table, TargetOutline, read, sites, table, tables
from relay.config.problems import Problem
from relay.core.attribution import DATE_REACH, LATE_WINDOW
from relay.core.model import Method, fold

#: Local parts whose mail goes to ``operator`` at every domain of ours (RFC 5321 §4.5.1, RFC 2142 §2).
RESERVED = frozenset({"postmaster", "abuse"})

#: The paths of the script and of bind, which can be had under other names as well.
OWN_PATHS = {"script_path": "/mailtrack.js", "bind_path": "/v1/bind"}
#: First parts of the paths that the web server has for something else.
TAKEN = frozenset({"a", "v1", "ui", "login", "static", "healthz", "readyz", "metrics", "openapi.json", "mailtrack.js"})

Claims = dict[tuple[str, str], str]


def broken_rules(raw: Table) -> Iterator[Problem]:
    """Check the whole file, as TOML gave it."""
    outlines = sites(raw)
    yield from _listeners(raw)
    yield from _tls(raw)
    yield from _paths(raw)
    yield from _retention(raw)
    yield from _distinct(raw, "site", "", ("name", "key"))
    for site in outlines:
        yield from _distinct(site.raw, "webhook", f"{site.path}.", ("url",))
        yield from _cookies(raw, site)
        yield from _sources(site)
        yield from _targets(site)
        for target in site.targets:
            yield from _target(target)
        yield from _statics(site)
    claims: Claims = {}
    yield from _claims(outlines, claims)
    yield from _circles(raw, outlines, claims)


def _listeners(raw: Table) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    beyond = ""
    for section in ("smtp", "http"):
        value = table(raw, section).get("listen", [])
        for index, item in enumerate([value] if value == fields.SYSTEMD else value if isinstance(value, list) else ()):
            endpoint = read(fields.listen, item)
            path = f"{section}.listen[{index}]"
            # The service manager names its sockets by section, so both may be handed over.
            name = f"systemd {section}" if endpoint == fields.SYSTEMD else str(endpoint)
            if endpoint is None or name.endswith(":0"):
                continue
            if name in seen:
                yield Problem(path, f"{item} is already {seen[name]}")
            seen.setdefault(name, path)
            if isinstance(endpoint, str):
                beyond = beyond or f"{path} ({item}) may listen beyond loopback"
            elif not endpoint.loopback:
                beyond = beyond or f"{path} ({item}) listens beyond loopback"
    if beyond and raw.get("operator", "") == "":
        yield Problem("operator", f"is required: {beyond}, so mail to postmaster and abuse must reach a person")
    hostname = read(fields.domain, raw.get("hostname"))
    if beyond and hostname is not None and "." not in hostname:
        yield Problem("hostname", f'"{hostname}" must be a full name such as "mx.example.com": {beyond}')


def _tls(raw: Table) -> Iterator[Problem]:
    for section in ("smtp", "http"):
        given = {key for key in ("tls_cert", "tls_key") if table(raw, section).get(key, "") != ""}
        if len(given) == 1:
            missing = "tls_key" if "tls_cert" in given else "tls_cert"
            yield Problem(f"{section}.{missing}", f"is required with {section}.{given.pop()}")


def _paths(raw: Table) -> Iterator[Problem]:
    """The other names of the script and of bind must not hide anything else of ours."""
    http = table(raw, "http")
    given = {key: http.get(key, default) for key, default in OWN_PATHS.items()}
    for key, path in given.items():
        top = str(path).split("/")[1:2]
        if path != OWN_PATHS[key] and (top[0] in TAKEN if top else False):
            yield Problem(f"http.{key}", f"{path} is taken: not below /{top[0]}")
    if given["script_path"] == given["bind_path"]:
        yield Problem("http.bind_path", "must not be the same as http.script_path")


def _retention(raw: Table) -> Iterator[Problem]:
    section = table(raw, "retention")
    bodies, messages = (read(fields.duration, section.get(key)) for key in ("raw", "messages"))
    if bodies is not None and messages is not None and bodies > messages:
        yield Problem("retention.raw", "must not be longer than retention.messages: a body goes with its message")
    window = read(fields.duration, table(raw, "attribution").get("window", "24h"))
    for key in ("visits", "routes"):  # holdings go with either
        kept = read(fields.duration, section.get(key))
        if kept is not None and window is not None and kept < max(window, LATE_WINDOW) + DATE_REACH:
            text = (
                "must be at least 10 days, and at least attribution.window and 5 days more: "
                "without the earlier holders a guess would look exact"
            )
            yield Problem(f"retention.{key}", text)


def _distinct(raw: Table, key: str, prefix: str, names: tuple[str, ...]) -> Iterator[Problem]:
    seen: dict[tuple[str, str], str] = {}
    for path, item in tables(raw, key, prefix):
        for name in names:
            value = item.get(name)
            if not isinstance(value, str) or not value:
                continue
            first = seen.setdefault((name, value), f"{path}.{name}")
            if first != f"{path}.{name}":
                yield Problem(f"{path}.{name}", f'"{value}" is already {first}')


def _cookies(raw: Table, site: SiteOutline) -> Iterator[Problem]:
    """A browser keeps a cookie for a domain only from a host within it."""
    domain = read(fields.domain, site.raw.get("cookie_domain"))
    if site.raw.get("server_cookies") is not True:
        return
    if site.raw.get("cookie_domain", "") in ("", None):
        yield Problem(f"{site.path}.cookie_domain", "is required with server_cookies")
    url = read(fields.public_url, table(raw, "http").get("public_url"))
    host = None if url is None else urlsplit(url).hostname
    if domain is not None and host is not None and host != domain and not host.endswith(f".{domain}"):
        yield Problem(
            f"{site.path}.server_cookies", f"needs http.public_url within {domain}: browsers refuse cookies from {host}"
        )


def _sources(site: SiteOutline) -> Iterator[Problem]:
    for key in ("source", "sources"):
        for path, rule in tables(site.raw, key, f"{site.path}."):
            if not any(rule.get(name, "") not in ("", None) for name in ("referrer", "parameter", "page")):
                yield Problem(path, "needs a referrer, a parameter or a page to go by")
            elif rule.get("value", "") not in ("", None) and rule.get("parameter", "") in ("", None):
                yield Problem(f"{path}.value", "needs the parameter that has this value")


def _targets(site: SiteOutline) -> Iterator[Problem]:
    seen: dict[tuple[str, str], str] = {}
    for target in site.targets:
        if target.address is None:
            continue
        first = seen.setdefault(target.address.key, target.path)
        if first != target.path:
            yield Problem(f"{target.path}.address", f"{target.address} is already {first}.address")


def _target(target: TargetOutline) -> Iterator[Problem]:
    has_domain = target.raw.get("domain", "") != ""
    has_list, has_size = target.raw.get("pool", []) != [], "pool_size" in target.raw
    if target.method in (Method.PLUS, Method.UNIQUE):
        if not has_domain:
            yield Problem(f"{target.path}.domain", f'is required with method "{target.method}"')
        for key, given in (("pool", has_list), ("pool_size", has_size)):
            if given:
                yield Problem(f"{target.path}.{key}", f'is for method "pool", not "{target.method}"')
    if target.method is not Method.POOL:
        return
    if has_list and has_size:
        yield Problem(f"{target.path}.pool_size", "contradicts pool: give the list, or how many names to generate")
    elif has_size and not has_domain:
        yield Problem(f"{target.path}.domain", "is required with pool_size: the names are generated there")
    elif not has_list and not has_domain:
        yield Problem(
            target.path, "needs a list of addresses (pool) or a domain to generate them at (domain, pool_size)"
        )


def _statics(site: SiteOutline) -> Iterator[Problem]:
    known = {target.address.key for target in site.targets if target.address}
    for static in site.statics:
        if static.target is not None and static.target.key not in known:
            yield Problem(
                f"{static.path}.target", f'{static.target} is not the address of a target of site "{site.name}"'
            )


def _claims(outlines: tuple[SiteOutline, ...], claims: Claims) -> Iterator[Problem]:
    """Give every substitute to the first that names it; (domain, local part) is unique over all sites."""
    for site in outlines:
        owner = f' (site "{site.name}")'
        for target in site.targets:
            for place in target.pool:
                yield from _claim(claims, place, f"{place.path}{owner}")
            if target.base is not None:
                base = Placed(f"{target.path}.address", target.base)
                yield from _claim(claims, base, f"the base address of {target.path}{owner}", "its base address ")
        for static in site.statics:
            if static.address is not None:
                place = Placed(f"{static.path}.address", static.address)
                yield from _claim(claims, place, f"{place.path}{owner}")


def _claim(claims: Claims, place: Placed, owner: str, what: str = "") -> Iterator[Problem]:
    local = fold(place.address.local)
    if "+" in local:
        yield Problem(place.path, f'{what}{place.address} must not contain "+": what follows it is a tag')
    if local in RESERVED:
        yield Problem(place.path, f"{what}{place.address} cannot be a substitute: {local} mail goes to the operator")
    first = claims.setdefault(place.address.key, owner)
    if first is not owner:
        yield Problem(place.path, f"{what}{place.address} is already {first}")


def _circles(raw: Table, outlines: tuple[SiteOutline, ...], claims: Claims) -> Iterator[Problem]:
    """Mail must not be sent where it comes back from: to a substitute, or by MX to a domain whose MX we are."""
    ours = {domain for domain, _ in claims}
    ours.update(target.domain for site in outlines for target in site.targets if target.domain)
    by_mx = table(raw, "forward").get("next_hop", "") == ""
    for site in outlines:
        for target in site.targets:
            place = target.destination
            if place is None:
                continue
            owner = claims.get(place.address.key)
            if owner is not None and not (target.base and target.base.key == place.address.key):
                yield _circle(place, owner)
            elif place.address.domain in ours and by_mx and target.raw.get("next_hop", "") == "":
                yield _own_mx(place, f"{target.path}.next_hop or forward.next_hop")
    operator = read(fields.address, raw.get("operator"))
    if operator is not None and operator.key in claims:
        yield _circle(Placed("operator", operator), claims[operator.key])
    elif operator is not None and operator.domain in ours and by_mx:
        yield _own_mx(Placed("operator", operator), "forward.next_hop")


def _circle(place: Placed, owner: str) -> Problem:
    return Problem(place.path, f"{place.address} is a substitute, {owner}: its mail would come back here")


def _own_mx(place: Placed, remedy: str) -> Problem:
    address = place.address
    return Problem(
        place.path,
        f"{address.domain} is a domain of substitutes, so mail for {address} would come back here: set {remedy}",
    )
