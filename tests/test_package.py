"""The wheel is the product: it must carry what the code reads at run time."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_wheel_carries_templates_script_and_migrations_and_no_tests(tmp_path: Path) -> None:
    source = tmp_path / "source"
    kept_out = shutil.ignore_patterns(
        ".venv", ".git", "__pycache__", "node_modules", "build", "var", ".*_cache", ".hypothesis"
    )
    shutil.copytree(ROOT, source, ignore=kept_out)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "relay = relay.__main__:main" in archive.read(entry_points).decode()
    for path in (
        "relay/demo/templates/page.html",
        "relay/demo/static/demo.js",
        "relay/store/migrations/versions/0001_first.py",
        "relay/py.typed",
        "relay/data/sources/SearchEngines.yml",
        "relay/data/sources/LICENSE",
        "relay/presets/bitrix24.toml",
        "relay/presets/ga4.toml",
        "relay/presets/hubspot.toml",
        "relay/presets/kommo.toml",
        "webapi/script/mailtrack.js",
        "webapi/script/mailtrack.d.ts",
    ):
        assert path in names
    script = {name.removeprefix("webapi/script/") for name in names if name.startswith("webapi/script/")}
    assert script == {"mailtrack.js", "mailtrack.d.ts"}
    assert {name.split("/")[0] for name in names} <= {"relay", "webapi", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    assert not [name for name in names if "node_modules" in name or "__pycache__" in name]
