"""The units in systemd/: what they promise, what systemd says of them, and that the code can live inside them."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from relay import config

ROOT = Path(__file__).parent.parent
UNITS = ROOT / "systemd"
EXPOSURE = 1.4  # of 10, as `systemd-analyze security` counts

needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="SKIPPED LOUDLY: systemd-analyze is not installed"
)


def settings(unit: str, section: str) -> dict[str, list[str]]:
    """Every setting of a section with all its values, in order (systemd.syntax(7))."""
    found: dict[str, list[str]] = {}
    current = ""
    for line in (UNITS / unit).read_text().splitlines():
        if line.startswith("["):
            current = line.strip("[]")
        elif current == section and "=" in line and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


SERVICE = settings("relay.service", "Service")
SOCKET = settings("relay.socket", "Socket")


def test_the_service_is_not_root_and_has_no_capability() -> None:
    assert SERVICE["User"] == ["visit-relay"]
    assert SERVICE["Group"] == ["visit-relay"]
    assert SERVICE["CapabilityBoundingSet"] == SERVICE["AmbientCapabilities"] == [""]
    assert SERVICE["NoNewPrivileges"] == ["yes"]


def test_the_service_says_when_it_is_ready_and_is_watched() -> None:
    assert SERVICE["Type"] == ["notify"]
    assert SERVICE["NotifyAccess"] == ["main"]
    assert int(SERVICE["WatchdogSec"][0]) >= 10
    assert SERVICE["Restart"] == ["on-failure"]
    assert SERVICE["ExecReload"] == ["/bin/kill -HUP $MAINPID", "/bin/sleep 1"]


def test_a_refused_configuration_is_not_tried_again() -> None:
    assert SERVICE["RestartPreventExitStatus"] == ["2"]


def test_only_the_state_directory_can_be_written_and_by_nobody_else() -> None:
    assert SERVICE["ProtectSystem"] == ["strict"]
    assert SERVICE["StateDirectory"] == ["visit-relay"]
    assert SERVICE["StateDirectoryMode"] == ["0700"]
    assert SERVICE["UMask"] == ["0077"]
    assert "ReadWritePaths" not in SERVICE


@pytest.mark.parametrize(
    "key",
    [
        "LockPersonality MemoryDenyWriteExecute PrivateDevices PrivateMounts PrivateTmp PrivateUsers ProtectClock",
        "ProtectControlGroups ProtectHome ProtectHostname ProtectKernelLogs ProtectKernelModules ProtectKernelTunables",
        "RemoveIPC RestrictNamespaces RestrictRealtime RestrictSUIDSGID",
    ],
)
def test_the_service_is_hardened(key: str) -> None:
    assert {name: SERVICE.get(name) for name in key.split()} == {name: ["yes"] for name in key.split()}


def test_only_the_needed_addresses_and_system_calls_are_allowed() -> None:
    assert SERVICE["RestrictAddressFamilies"] == ["AF_UNIX AF_INET AF_INET6"]
    assert SERVICE["SystemCallFilter"] == ["@system-service", "~@privileged"]
    assert SERVICE["SystemCallArchitectures"] == ["native"]


def test_there_are_descriptors_for_every_allowed_connection() -> None:
    # one for the client, one for a large body; the rest of the daemon fits into the other half
    assert int(SERVICE["LimitNOFILE"][0]) >= 4 * config.Limits().connections


def test_the_socket_unit_hands_port_25_of_both_families_to_the_daemon() -> None:
    assert SOCKET["ListenStream"] == ["0.0.0.0:25", "[::]:25"]
    assert SOCKET["BindIPv6Only"] == ["ipv6-only"]
    assert SOCKET["FileDescriptorName"] == ["smtp"]
    assert SOCKET["Service"] == ["relay.service"]
    assert settings("relay.service", "Unit")["Requires"] == ["relay.socket"]


def test_the_settings_that_the_unit_asks_for_load() -> None:
    text = (UNITS / "relay.service").read_text()
    assert 'data_dir = "/var/lib/visit-relay", smtp.listen = "systemd"' in text
    loaded = config.parse(
        'hostname = "mx.example.com"\noperator = "ops@example.org"\n'
        'data_dir = "/var/lib/visit-relay"\nsmtp.listen = "systemd"',
        Path("/etc/visit-relay"),
    )
    assert loaded.data_dir == Path("/var/lib/visit-relay")


@needs_systemd_analyze
def test_systemd_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    for unit in ("relay.service", "relay.socket"):
        # verify wants the program to exist; nothing else is changed
        text = (UNITS / unit).read_text().replace("/opt/visit-relay/bin/relay", "/bin/true")
        (tmp_path / unit).write_text(text)
    units = [str(tmp_path / "relay.service"), str(tmp_path / "relay.socket")]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=60, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "relay" in line]
    assert ours == []
    assert done.returncode == 0


OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
(BACKUP,) = re.findall(r"```\n(\[Service\]\nType=oneshot\n.*?)```", OPERATIONS, re.DOTALL)
BACKUPS = "/var/backups/visit-relay"


@needs_systemd_analyze
def test_systemd_reads_the_unit_of_the_nightly_backup(tmp_path: Path) -> None:
    unit = tmp_path / "visit-relay-backup.service"
    unit.write_text(BACKUP)
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert [line for line in done.stderr.splitlines() if unit.name in line] == []


@pytest.mark.parametrize("nightly", [True, False])
def test_the_rotation_of_backups_keeps_fourteen_nights_and_what_is_no_night(tmp_path: Path, nightly: bool) -> None:
    (after,) = re.findall(r"^ExecStopPost=/bin/sh -c '(.*)'$", BACKUP, re.MULTILINE)
    (by_hand,) = re.findall(r"^ls -1d /var/backups/.*$", OPERATIONS, re.MULTILINE)
    nights = [f"2026-11-{day:02}" for day in range(1, 18)]
    others = ["before-upgrade-2026-11-01-0900", "2026-11-17.partial"]
    for name in (*nights, *others):
        (tmp_path / name / "bodies").mkdir(parents=True)
    script = (after if nightly else by_hand).replace(BACKUPS, str(tmp_path))
    for _ in range(2):
        subprocess.run(["sh", "-c", script], check=True)
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == sorted([*nights[-14:], *others[: 1 if nightly else 2]])


def test_the_watch_of_the_documentation_tells_of_a_backup_that_has_failed(tmp_path: Path) -> None:
    (watch,) = re.findall(r"```sh\n(#!/bin/sh\n.*?)```", OPERATIONS, re.DOTALL)
    for name, does in (("curl", "echo relay_messages_held 0"), ("systemctl", '[ "$*" = "$FAILED" ]')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    for failed, told in (("is-failed -q visit-relay-backup", True), ("", False)):
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-c", watch], env={"PATH": path, "FAILED": failed}, capture_output=True, text=True, check=True
        )
        assert (done.stdout.startswith("the backup of visit-relay has failed"), bool(done.stdout)) == (told, told)


@needs_systemd_analyze
def test_systemd_rates_the_exposure_as_low() -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNITS / "relay.service")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("SKIPPED LOUDLY: this systemd-analyze is too old for --offline")
    rated = re.search(r"Overall exposure level for relay\.service: ([\d.]+)", done.stdout)
    assert rated is not None, done.stderr
    assert float(rated[1]) <= EXPOSURE


def test_a_socket_activated_by_systemd_itself_arrives_under_its_name() -> None:
    activate = shutil.which("systemd-socket-activate")
    if activate is None:
        pytest.skip("SKIPPED LOUDLY: systemd-socket-activate is not installed")
    program = (
        "from relay.notify import take_sockets\n"
        "(name, (sock,)), = take_sockets().items()\n"
        "sock.setblocking(True); client, _ = sock.accept(); client.sendall(name.encode()); client.close(); sock.close()"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [activate, "-l", f"127.0.0.1:{port}", "--fdname=smtp", sys.executable, "-c", program]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as process:
        assert process.stderr is not None
        assert "Listening on" in process.stderr.readline()
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            assert client.makefile().read() == "smtp"
        assert process.wait(timeout=10) == 0


MEMORY = """
import ctypes, mmap
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
if ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
    raise SystemExit(77)
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
except OSError:
    pass
else:
    raise SystemExit("writable and executable memory is still allowed")
import importlib, sqlite3, ssl, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
import aiosmtpd.smtp, dns.asyncresolver
from relay.secrets import seal, unseal
assert unseal([b"k" * 32], seal(b"k" * 32, "x")) == "x"
assert sqlite3.connect(":memory:").execute("SELECT 1").fetchone() == (1,)
ssl.create_default_context()
import re2
assert re2.compile("(a|b)+c").search("abac")
import argon2
assert argon2.PasswordHasher().verify(argon2.PasswordHasher().hash("x"), "x")
import uvloop, asyncio
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(asyncio.sleep(0))
"""
#: What a distribution is imported as, where that is not its name.
IMPORTED = {
    "argon2-cffi": "argon2",
    "crawler-user-agents": "crawleruseragents",
    "dnspython": "dns",
    "google-re2": "re2",
    "pyyaml": "yaml",
    "ua-parser-builtins": "ua_parser_builtins",
}


@pytest.mark.skipif(sys.platform != "linux", reason="MemoryDenyWriteExecute is Linux's")
def test_every_dependency_works_without_writable_and_executable_memory() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [re.match(r"[\w-]+", line)[0].lower() for line in project["dependencies"]]  # type: ignore[index]
    modules = [IMPORTED.get(name, name.replace("-", "_")) for name in named]
    assert len(modules) > 20
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *modules], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip("SKIPPED LOUDLY: this kernel has no PR_SET_MDWE (Linux 6.3)")
    assert done.returncode == 0, done.stderr
