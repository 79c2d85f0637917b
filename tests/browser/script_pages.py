"""The React and Vue pages of webapi/script/test/pages, built for production by esbuild, once a process."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.browser.script_site import SCRIPT
from tests.missing import missing

PAGES = SCRIPT / "test/pages"


def esbuild() -> list[str]:
    """How to call it; skips the test, saying so, when Node.js or the script's packages are not there."""
    program = SCRIPT / "node_modules/esbuild/bin/esbuild"
    if shutil.which("node") is None:
        missing("NOT TESTED BESIDE REACT AND VUE: no node on this machine (Node.js 20 or newer)")
    if not program.exists():
        missing("NOT TESTED BESIDE REACT AND VUE: no packages (make script, or npm ci in webapi/script)")
    return ["node", str(program)]


@functools.cache
def _folder() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="relay-pages-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


@functools.cache
def built(page: str, platform: str = "browser") -> Path:
    """The page's script, as a website would serve it."""
    output = _folder() / f"{page}.mjs"
    source = next(PAGES.glob(f"{page}.ts*"))
    options = [
        "--bundle",
        "--minify",
        "--format=esm",
        f"--platform={platform}",
        '--define:process.env.NODE_ENV="production"',
        "--define:__VUE_OPTIONS_API__=true",
        "--define:__VUE_PROD_DEVTOOLS__=false",
        "--define:__VUE_PROD_HYDRATION_MISMATCH_DETAILS__=false",
        "--log-level=error",
    ]
    # What runs in Node takes its packages from beside the source: a bundle of CommonJS cannot require "util".
    if platform == "node":
        options.append("--packages=external")
        output = SCRIPT / "node_modules/.cache" / f"{page}.mjs"
    subprocess.run([*esbuild(), str(source), *options, f"--outfile={output}"], check=True)
    return output


@functools.cache
def rendered(page: str) -> str:
    """What the page's server sends."""
    server = built(page, platform="node")
    env = {**os.environ, "NODE_ENV": "production"}
    return subprocess.run(["node", str(server)], check=True, capture_output=True, text=True, env=env).stdout.strip()
