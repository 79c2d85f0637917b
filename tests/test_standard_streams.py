"""Standard streams as whoever starts the program leaves them: closed, or of a locale that lacks most letters."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon import BASE, PATIENCE, START, environment, toml


def children(pid: int) -> list[str]:
    return [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_daemon_and_its_processes_need_none_and_end_by_ctrl_c_as_by_sigterm(tmp_path: Path) -> None:
    config = tmp_path / "relay.toml"
    config.write_text(toml(BASE))
    serve = [sys.executable, "-m", "relay", "serve", "--config", str(config)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(START)
        daemon = subprocess.Popen(
            ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *serve],
            env=environment() | {"NOTIFY_SOCKET": str(tmp_path / "notify")},
        )
        try:
            said = manager.recv(4096).decode()  # where nobody can read the log
            port = re.search(r"SMTP \[(\d+)\]", said)
            assert port is not None, said
            with socket.create_connection(("127.0.0.1", int(port[1])), PATIENCE) as client:
                assert client.recv(4096).startswith(b"220 ")
            for pid in (str(daemon.pid), *children(daemon.pid)):
                assert str(Path(f"/proc/{pid}/fd/2").readlink()) == "/dev/null"
            daemon.send_signal(signal.SIGINT)
            assert daemon.wait(PATIENCE) == 0
        finally:
            daemon.kill()
            daemon.wait()


def test_what_the_locale_has_no_letter_for_is_escaped() -> None:
    program = "from relay.cli import root\nroot.cli = lambda **_: print('Grüße, Привет')\nroot.main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment() | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout == r"Grüße, \u041f\u0440\u0438\u0432\u0435\u0442".encode("latin-1") + b"\n"
