"""The committed mailtrack.js: built from the sources beside it, small, and harmless to run anywhere."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

from tests.missing import missing

SCRIPT = Path(__file__).parents[1] / "webapi/script"
BUILT = SCRIPT / "mailtrack.js"
#: Bytes on the wire that a website is asked for at most; the site's settings come on top.
GZIP, BROTLI = 3440, 3088


def node(*arguments: str) -> str:
    if shutil.which("node") is None:
        missing("NOT TESTED: whether mailtrack.js is current: no node on this machine (Node.js 20 or newer)")
    if not (SCRIPT / "node_modules/esbuild").exists():
        missing("NOT TESTED: whether mailtrack.js is current: no packages (make script)")
    return subprocess.run(["node", *arguments], cwd=SCRIPT, check=True, capture_output=True, text=True).stdout


def test_the_committed_script_is_what_the_sources_build(tmp_path: Path) -> None:
    report = node("build.mjs", str(tmp_path / "mailtrack.js"))
    print(report)
    assert (tmp_path / "mailtrack.js").read_bytes() == BUILT.read_bytes(), "run `make script` and commit the result"
    sizes = re.search(r"(\d+) bytes, (\d+) gzip, (\d+) brotli", report)
    assert sizes is not None
    assert int(sizes[2]) <= GZIP
    assert int(sizes[3]) <= BROTLI


def test_the_committed_script_is_small_with_any_gzip() -> None:
    assert len(gzip.compress(BUILT.read_bytes(), 9)) <= GZIP


def test_the_settings_have_one_place_which_is_the_functions_argument() -> None:
    text = BUILT.read_text("utf-8")
    assert text.startswith("/*! visit-relay */\n")
    assert text.endswith("})(__MAILTRACK__);\n")
    assert text.count("__MAILTRACK__") == 1
    assert text.isascii()
    assert "</" not in text


def test_nothing_in_it_needs_what_a_content_security_policy_forbids() -> None:
    forbidden = re.compile(r"\beval\b|\bFunction\(|innerHTML|document\.write|insertAdjacentHTML|setTimeout\(['\"]")
    assert forbidden.findall(BUILT.read_text("utf-8")) == []


def test_it_is_ecmascript_2020() -> None:
    """Nothing is left to lower: for ES2020 esbuild writes the same as for the newest."""
    esbuild = str(SCRIPT / "node_modules/esbuild/bin/esbuild")
    lowered, newest = (node(esbuild, str(BUILT), f"--target={target}") for target in ("es2020", "esnext"))
    assert lowered == newest


def test_the_lock_has_hashes_and_no_addresses() -> None:
    packages = json.loads((SCRIPT / "package-lock.json").read_text("utf-8"))["packages"]
    assert len(packages) > 10
    for name, package in packages.items():
        assert "resolved" not in package, name
        assert name == "" or package["integrity"].startswith("sha512-"), name
    declared = json.loads((SCRIPT / "package.json").read_text("utf-8"))
    assert "dependencies" not in declared
    assert all(re.fullmatch(r"\d+(\.\d+)+", version) for version in declared["devDependencies"].values())


def test_every_package_has_a_licence_that_we_allow() -> None:
    packages = json.loads((SCRIPT / "package-lock.json").read_text("utf-8"))["packages"]
    allowed = {
        "MIT",
        "Apache-2.0",
        "ISC",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "0BSD",
        "MPL-2.0",
    }  # the last: axe-core, of tests
    assert {package["license"] for package in packages.values()} <= allowed
