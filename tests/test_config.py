"""relay.toml: what loads, what it becomes, what is refused and how, and that every key is documented."""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from relay import config
from relay.config import Config, ConfigError, Endpoint, load, parse, render_initial
from relay.config.fields import duration, format_duration, origin
from relay.config.problems import key_of, table_of
from relay.core.model import Address, Method

ROOT = Path(__file__).parent.parent
BAD = sorted((ROOT / "tests" / "bad_configs").glob("*.toml"))
HERE = Path("/etc/visit-relay")
MINIMAL = 'hostname = "mx.example.com"\n'

SITE = """
[[site]]
name = "example"
key = "pk_example"
origins = ["https://www.example.com"]
"""


def errors(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, HERE)
    return str(caught.value).splitlines()


def target(body: str) -> config.Target:
    return parse(f"{MINIMAL}{SITE}\n[[site.target]]\n{body}", HERE).sites[0].targets[0]


# --- what loads


def test_the_example_of_the_repository_loads() -> None:
    loaded = load(ROOT / "relay.toml")
    (site,) = loaded.sites
    assert site.targets[0].pool == (Address("info1", "track.example.com"), Address("info2", "track.example.com"))
    assert site.statics[0].target == site.targets[0].address
    assert site.webhooks[0].secret.startswith("whsec_")
    assert loaded.data_dir == ROOT / "var"


def test_the_smallest_file_of_the_readme_loads_with_a_secret_of_ones_own_and_its_web_server_is_believed() -> None:
    (block,) = re.findall(r"^ *```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (refusal,) = errors(block)  # copied as it is it does not run
    assert refusal.startswith("site[0].webhook[0].secret: must be ")
    loaded = parse(block.replace("whsec_…", load(ROOT / "relay.toml").sites[0].webhooks[0].secret), HERE)
    assert loaded.sites[0].targets[0].generated == 30
    assert loaded.http.trusted_proxies == (IPv4Network("127.0.0.1/32"),)


def test_a_host_name_is_all_that_is_needed() -> None:
    loaded = parse(MINIMAL, HERE)
    assert loaded.smtp.listen == (Endpoint("127.0.0.1", 2525),)
    assert loaded.limits.exempt == (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
    assert loaded.operator is None
    assert loaded.sites == ()


def test_values_become_what_the_daemon_works_with() -> None:
    loaded = parse(
        """
        hostname = "MX.Bücher.example"
        operator = "Ops@Example.org"
        [smtp]
        listen = ["systemd", "[::1]:0", "localhost:2525", "0.0.0.0:25"]
        [http]
        public_url = "https://relay.example.com/track/"
        trusted_proxies = ["10.0.0.0/8", "192.0.2.1"]
        [dns]
        nameservers = ["9.9.9.9", "127.0.0.1:5353", "::1", "[::1]:5353"]
        [forward]
        next_hop = "smtps://relay:sesame@mail.example.com"
        retry_for = "90s"
        """,
        HERE,
    )
    assert loaded.hostname == "mx.xn--bcher-kva.example"
    assert loaded.operator == Address("Ops", "example.org")
    assert list(map(str, loaded.smtp.listen)) == ["systemd", "[::1]:0", "localhost:2525", "0.0.0.0:25"]
    assert loaded.http.public_url == "https://relay.example.com/track"
    assert loaded.http.trusted_proxies == (IPv4Network("10.0.0.0/8"), IPv4Network("192.0.2.1/32"))
    assert list(map(str, loaded.dns.nameservers)) == ["9.9.9.9:53", "127.0.0.1:5353", "[::1]:53", "[::1]:5353"]
    assert loaded.forward.next_hop == "smtps://relay:sesame@mail.example.com"
    assert loaded.forward.retry_for == 90.0


def test_systemd_may_stand_alone() -> None:
    assert parse(MINIMAL + 'operator = "ops@example.org"\nsmtp.listen = "systemd"', HERE).smtp.listen == ("systemd",)


def test_both_listeners_may_come_from_systemd_and_both_may_take_any_free_port() -> None:
    text = MINIMAL + 'operator = "ops@example.org"\nsmtp.listen = {0}\nhttp.listen = {0}'
    for value in ('"systemd"', '["127.0.0.1:0"]'):
        loaded = parse(text.format(value), HERE)
        assert loaded.smtp.listen == loaded.http.listen


def test_empty_strings_mean_not_set() -> None:
    loaded = parse(MINIMAL + 'operator = ""\nsmtp = {tls_cert = "", tls_key = ""}\nforward.next_hop = ""', HERE)
    assert (loaded.operator, loaded.smtp.tls_cert, loaded.forward.next_hop) == (None, None, None)
    one = target('address = "a@example.com"\npool_size = 3\ndomain = "t.example"\nforward_to = ""\nnext_hop = ""')
    assert (one.forward_to, one.next_hop) == (None, None)


def test_relative_paths_start_at_the_directory_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "relay.toml").write_text(
        MINIMAL + 'data_dir = "../var"\nsmtp = {tls_cert = "c.pem", tls_key = "/k.pem"}\ngeoip.files = ["a.mmdb"]'
    )
    monkeypatch.chdir(tmp_path)
    loaded = load(Path("etc/relay.toml"))
    assert loaded.data_dir == tmp_path / "etc" / ".." / "var"
    assert (loaded.smtp.tls_cert, loaded.smtp.tls_key) == (tmp_path / "etc" / "c.pem", Path("/k.pem"))
    assert loaded.geoip.files == (tmp_path / "etc" / "a.mmdb",)


def test_the_data_directory_is_var_beside_the_file() -> None:
    assert parse(MINIMAL, HERE).data_dir == HERE / "var"


def test_a_byte_order_mark_and_windows_line_ends_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "relay.toml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load(tmp_path / "relay.toml").hostname == "mx.example.com"


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse(MINIMAL, HERE).smtp.bare_lf = "refuse"


def test_secrets_are_not_in_the_representation() -> None:
    secret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
    loaded = parse(
        f'{MINIMAL}forward.next_hop = "smtps://u:sesame@h.example"\n{SITE}\n'
        f'[[site.target]]\naddress = "a@example.com"\ndomain = "t.example"\nnext_hop = "smtps://u:sesame@h.example"\n'
        f'[[site.webhook]]\nurl = "https://crm.example"\nsecret = "{secret}"',
        HERE,
    )
    assert loaded.sites[0].webhooks[0].secret == secret
    assert "sesame" not in repr(loaded)
    assert "whsec_" not in repr(loaded)


# --- pools and bases


def test_a_pool_of_names_is_generated_unless_a_list_is_given() -> None:
    assert target('address = "a@example.com"\ndomain = "t.example"').generated == 30
    assert target('address = "a@example.com"\ndomain = "t.example"\npool_size = 5').generated == 5
    assert target('address = "a@example.com"\npool = ["x@t.example"]').generated == 0
    assert target('address = "a@example.com"\ndomain = "t.example"\nmethod = "unique"').generated == 0


def test_the_default_method_is_a_pool_with_a_lease_of_fifteen_minutes() -> None:
    one = target('address = "a@example.com"\ndomain = "t.example"')
    assert (one.method, one.lease) == (Method.POOL, 900.0)


def test_pool_and_unique_targets_may_share_a_base_address() -> None:
    shared = '[[site.target]]\naddress = "sales@{}"\nmethod = "{}"\ndomain = "t.example"\n'
    text = MINIMAL + SITE + shared.format("one.example", "pool") + shared.format("two.example", "unique")
    assert len(parse(text + shared.format("three.example", "plus"), HERE).sites[0].targets) == 3


def test_a_plus_target_in_its_own_domain_needs_a_next_hop_and_then_loads() -> None:
    body = 'address = "sales@example.com"\ndomain = "example.com"\nmethod = "plus"\n'
    assert target(body + 'next_hop = "smtp://10.0.0.1:25"').next_hop == "smtp://10.0.0.1:25"
    text = f"{MINIMAL}forward.next_hop = 'smtp://10.0.0.1'\n{SITE}\n[[site.target]]\n{body}"
    assert parse(text, HERE).sites[0].targets[0].domain == "example.com"


def test_a_rule_is_checked_even_where_another_key_of_the_target_is_wrong() -> None:
    text = (
        MINIMAL + SITE + '[[site.target]]\naddress = "a@b.example"\nlease = 15\npool = ["x@t.example", "x@t.example"]'
    )
    assert [line.partition(":")[0] for line in errors(text)] == [
        "site[0].target[0].lease",
        "site[0].target[0].pool[1]",
    ]


def test_a_static_substitute_of_a_target_with_another_error_is_not_called_unknown() -> None:
    text = (
        f'{MINIMAL}{SITE}[[site.target]]\naddress = "a@b.example"\ndomain = "t.example"\nlease = 15\n'
        '[[site.static]]\naddress = "x@t.example"\ntarget = "A@B.example"\nlabel = "card"'
    )
    assert [line.partition(":")[0] for line in errors(text)] == ["site[0].target[0].lease"]


# --- single values


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("0s", 0.0), ("250ms", 0.25), ("90s", 90.0), ("15m", 900.0), ("24h", 86_400.0), ("400d", 34_560_000.0)],
)
def test_durations_are_seconds(written: str, seconds: float) -> None:
    assert duration(written) == seconds


@given(st.integers(0, 10**8), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_a_duration_survives_being_written_and_read(count: int, unit: str) -> None:
    seconds = duration(f"{count}{unit}")
    assert duration(format_duration(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written", ["", "15", "m", "1.5h", "15 m", "15M", "+1s", "1h30m", "٣s", "9999999999s", 15, True, None]
)
def test_anything_else_is_no_duration(written: object) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        duration(written)


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("https://www.example.com", "https://www.example.com"),
        ("HTTPS://WWW.Example.com:443", "https://www.example.com"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("https://Bücher.example", "https://xn--bcher-kva.example"),
        ("https://*.example.com", "https://*.example.com"),
        ("https://*.Bücher.example:8443", "https://*.xn--bcher-kva.example:8443"),
    ],
)
def test_an_origin_is_kept_as_a_browser_sends_it(written: str, sent: str) -> None:
    assert origin(written) == sent


# --- what is refused


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_configuration_is_refused_for_the_expected_reason(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).splitlines() == path.with_suffix(".expected").read_text().splitlines()
    assert "sesame" not in str(caught.value)


def test_every_bad_configuration_has_its_expected_errors_and_the_other_way_round() -> None:
    assert len(BAD) >= 30
    assert {path.stem for path in BAD} == {path.stem for path in (ROOT / "tests" / "bad_configs").glob("*.expected")}


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "relay.toml")
    assert str(caught.value) == f"{tmp_path / 'relay.toml'}: No such file or directory"


def test_a_directory_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path)


def test_a_file_that_is_not_utf8_is_refused_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "relay.toml").write_bytes(MINIMAL.encode() + b'operator = "\xff"\n')
    with pytest.raises(ConfigError, match=r"not UTF-8 \(at line 2\)"):
        load(tmp_path / "relay.toml")


def test_a_file_of_absurd_length_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "MAX_FILE", 100)
    (tmp_path / "relay.toml").write_text("#" * 101)
    with pytest.raises(ConfigError, match="longer than 100 octets"):
        load(tmp_path / "relay.toml")


def test_absurd_nesting_and_absurd_numbers_are_refused() -> None:
    assert errors("x = " + "[" * 100_000) == ["not TOML: nested too deeply"]
    assert errors("x = " + "9" * 5_000)[0].startswith("not TOML: ")
    assert errors(MINIMAL + "limits.recipients = 9223372036854775808") == [
        "limits.recipients: must be at most 1000000000, not 9223372036854775808"
    ]


TOML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.text(max_size=8)
    | st.sampled_from(["systemd", "a@b.example", "127.0.0.1:25", "15m", "pool", "plus", "t.example", "https://a.example"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["name", "key", "address", "pool", "domain", "method", "target", "static", "webhook", "url"])
        | st.sampled_from(["listen", "tls_cert", "raw", "messages", "next_hop", "forward_to", "label", "origins"]),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from([*Config.model_fields, "site", "x"]), TOML_VALUES, max_size=6))
@settings(deadline=None)
@example({"site": [{"target": [{"pool": [{}], "method": []}], "static": 1, "name": []}], "smtp": {"listen": [[]]}})
def test_no_nonsense_raises_anything_but_the_refusal(raw: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tomllib, "loads", lambda text: raw)
        with contextlib.suppress(ConfigError):
            parse("", HERE)


# --- relay init


@pytest.mark.parametrize(("hostname", "operator"), [("mx.example.com", "ops@example.org"), ("localhost", "")])
def test_the_initial_file_loads_and_says_what_was_given(hostname: str, operator: str) -> None:
    loaded = parse(render_initial(hostname, operator), HERE)
    assert loaded.hostname == hostname
    assert str(loaded.operator or "") == operator
    assert loaded.http.trusted_proxies == (IPv4Network("127.0.0.1/32"),)


def test_the_site_commented_out_in_the_initial_file_loads_too() -> None:
    text = render_initial("mx.example.com", "")
    enabled = re.sub(r"(?m)^# (?=\[\[|[a-z_]+ = )", "", text)
    (site,) = parse(enabled, HERE).sites
    assert (site.targets[0].generated, len(site.webhooks)) == (30, 1)


@pytest.mark.parametrize(
    ("hostname", "operator", "key"),
    [('mx"\nx = 1', "", "hostname"), ("mx.example.com", "ops\\", "operator"), ("mx\x00.example.com", "", "hostname")],
)
def test_a_bad_answer_to_init_is_refused_with_its_key(hostname: str, operator: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        render_initial(hostname, operator)
    assert [problem.path for problem in caught.value.problems] == [key]


# --- documentation


def keys(model: type[BaseModel] = Config, section: str = "") -> Iterator[tuple[str, str, type[BaseModel]]]:
    """(section as in docs, key, model) of every plain key."""
    for name, field in model.model_fields.items():
        key, table = key_of(model, name), table_of(field.annotation)
        if table is None:
            yield section, key, model
            continue
        inner = f"{section.strip('[]')}.{key}".removeprefix(".")
        is_list = "tuple" in str(field.annotation)
        yield from keys(table, f"[[{inner}]]" if is_list else f"[{inner}]")


def documented() -> dict[tuple[str, str], str]:
    """(section, key) → default, from the tables of docs/configuration.md."""
    section, rows = "", {}
    for line in (ROOT / "docs" / "configuration.md").read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").removeprefix("Top level")
        elif match := re.match(r"\| `(\w+)` \| [^|]+ \| ([^|]+) \| [^|]+ \|$", line):
            default = match[2].strip("`")
            is_duration = re.fullmatch(r'"\d+(ms|s|m|h|d)"', default)
            rows[section, match[1]] = written(duration(default.strip('"'))) if is_duration else default
    return rows


def written(value: object) -> str:
    """A default as it stands in relay.toml."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, dict):
        return "{}"
    if isinstance(value, float):
        return f'"{format_duration(value)}"'
    return f'"{"" if value is None else value}"'


def default_of(model: type[BaseModel], key: str) -> str:
    field = next(field for name, field in model.model_fields.items() if key_of(model, name) == key)
    if field.is_required():
        return "required"
    if key == "pool_size":
        return "none"
    return str(field.default) if type(field.default) is int else written(field.default)


def test_every_key_is_documented_with_its_default_and_nothing_else_is() -> None:
    expected = {(section, key): default_of(model, key) for section, key, model in keys()}
    assert documented() == expected


def test_every_key_stands_in_the_example_file() -> None:
    text = (ROOT / "relay.toml").read_text()
    section, found = "", set()
    for line in text.splitlines():
        if line.startswith("["):
            section = line.split("#")[0].strip()
        elif match := re.match(r"(\w+) = ", line):
            found.add((section, match[1]))
    assert {(section, key) for section, key, _ in keys()} - found == {("[[site.target]]", "pool_size")}
    assert "pool_size = 30" in text


def test_the_example_file_shows_the_defaults() -> None:
    raw = tomllib.loads((ROOT / "relay.toml").read_text())
    shown = load(ROOT / "relay.toml")
    default = parse(f'hostname = "{raw["hostname"]}"\ndata_dir = "{ROOT / "var"}"', HERE)
    assert shown.model_copy(update={"sites": ()}) == default
    site = raw["site"][0]
    minimal = parse(
        f'{MINIMAL}\n[[site]]\nname = "example"\nkey = "pk_example"\norigins = ["https://www.example.com"]\n'
        f'[[site.target]]\naddress = "sales@example.com"\ndomain = "track.example.com"\n'
        f"pool = {site['target'][0]['pool']}\n"
        f'[[site.source]]\nmarker = "partner_alpha"\nchannel = "referral"\nreferrer = "alpha.example"\n'
        f'[[site.static]]\naddress = "card@track.example.com"\ntarget = "sales@example.com"\nlabel = "business card"\n'
        f'[[site.webhook]]\nurl = "https://crm.example.com/hook"\nsecret = "{site["webhook"][0]["secret"]}"\n',
        HERE,
    )
    assert shown.sites == minimal.sites


# The keys that the product promises to keep.
PROMISED = {
    "": ["hostname", "operator", "data_dir"],
    "storage": ["url"],
    "smtp": ["listen", "max_message_size", "tls_cert", "tls_key"],
    "http": ["listen", "public_url", "trusted_proxies", "tls_cert", "tls_key"],
    "limits": ["exempt"],
    "dns": ["nameservers"],
    "forward": ["next_hop", "mx_port", "retry_for"],
    "webhooks": ["allow_private_addresses"],
    "geoip": ["files"],
    "retention": ["raw", "messages", "visits"],
    "site": ["name", "key", "origins", "tracking", "send_to_crm", "bots"],
    "site.target": ["address", "method", "domain", "pool", "pool_size", "lease"],
    "site.static": ["address", "target", "label"],
    "site.webhook": ["url", "secret", "fill"],
}


def test_the_promised_keys_exist() -> None:
    known = {(section.strip("[]"), key) for section, key, _ in keys()}
    assert {(section, key) for section, names in PROMISED.items() for key in names} - known == set()
