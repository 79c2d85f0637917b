"""`relay check` of cookies: which two sites keep their visits in the same place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from relay import check_cookies
from relay.check_findings import OK, WARN
from relay.store.sites import define
from tests.check_helpers import configured, findings, only
from tests.store_fixtures import NOW, opened, site


def with_origins(name: str, *origins: str, domain: str = "") -> dict[str, Any]:
    return {"name": name, "key": f"pk_{name}", "origins": list(origins), "cookie_domain": domain}


SHOP = with_origins("shop", "https://shop.example.com", domain="example.com")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(SHOP, with_origins("blog", "https://blog.example.com"), id="a host within the other's domain"),
        pytest.param(SHOP, with_origins("blog", "https://example.com"), id="that domain itself"),
        pytest.param(SHOP, with_origins("blog", "https://*.blog.example.com"), id="all subdomains within it"),
        pytest.param(
            with_origins("one", "https://example.com"), with_origins("two", "https://example.com:8443"), id="one host"
        ),
        pytest.param(
            with_origins("one", "https://*.example.com"), with_origins("two", "https://b.example.com"), id="one of all"
        ),
    ],
)
async def test_two_sites_with_one_cookie_are_a_warning_that_names_both(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any]
) -> None:
    for sites in ([one, other], [other, one]):
        found = only(await findings(check_cookies.cookies, configured(tmp_path, {"site": sites})), "cookies")
        assert found.level == WARN
        assert f'"{one["name"]}"' in found.text
        assert f'"{other["name"]}"' in found.text


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(with_origins("other", "https://shop.other.example", domain="other.example"), id="another domain"),
        pytest.param(with_origins("other", "https://badexample.com"), id="a name that ends alike"),
    ],
)
async def test_sites_whose_cookies_are_apart_are_good(tmp_path: Path, other: dict[str, Any]) -> None:
    found = only(await findings(check_cookies.cookies, configured(tmp_path, {"site": [SHOP, other]})), "cookies")
    assert found.level == OK


async def test_sites_of_the_database_are_looked_at_beside_those_of_the_file(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    added = site("added", origins=("https://www.example.com",))
    async with opened(data) as store:
        await store.redefine(lambda tx: define(tx, added, NOW))
    found = only(await findings(check_cookies.cookies, configured(tmp_path, {"site": [SHOP]})), "cookies")
    assert (found.level, '"added" and "shop"' in found.text) == (WARN, True)
