"""Keys on disk, sealed values and API tokens."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.secrets import KEY_SIZE, NAMES, Keys, KeysError, SealError, new_token, seal, token_hash, unseal

KEY, OTHER = b"k" * KEY_SIZE, b"o" * KEY_SIZE


def test_missing_keys_are_created_readable_by_the_owner_only(tmp_path: Path) -> None:
    keys = Keys.load(tmp_path / "data" / "keys")
    assert (tmp_path / "data" / "keys").stat().st_mode & 0o777 == 0o700
    for name in NAMES:
        assert (tmp_path / "data" / "keys" / f"{name}.key").stat().st_mode & 0o777 == 0o600
        assert len(keys.current(name)) == KEY_SIZE
    assert len({keys.current(name) for name in NAMES}) == len(NAMES)


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    program = "import os,sys,pathlib; os.umask(0); from relay.secrets import Keys; Keys.load(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "keys")], check=True)
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "keys").iterdir()} == {0o600}


def test_keys_survive_a_restart(tmp_path: Path) -> None:
    first = Keys.load(tmp_path / "keys")
    second = Keys.load(tmp_path / "keys")
    assert [first.all(name) for name in NAMES] == [second.all(name) for name in NAMES]


def test_one_missing_key_is_created_and_the_others_stay(tmp_path: Path) -> None:
    first = Keys.load(tmp_path / "keys")
    (tmp_path / "keys" / "links.key").unlink()
    second = Keys.load(tmp_path / "keys")
    assert second.current("links") != first.current("links")
    assert second.current("srs") == first.current("srs")


def test_reading_them_makes_none(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    with pytest.raises(KeysError, match="keys is missing: restore it"):
        Keys.read(directory)
    assert not directory.exists()
    assert Keys.load(directory).all("srs") == Keys.read(directory).all("srs")
    (directory / "links.key").unlink()
    with pytest.raises(KeysError, match=r"links\.key is missing: restore it"):
        Keys.read(directory)
    assert not (directory / "links.key").exists()


def put_in_front(path: Path, key: bytes) -> None:
    """A new generation, as an operator makes one."""
    path.write_text(f"{key.hex()}\n{path.read_text()}")


def test_every_line_of_a_file_is_a_generation_and_the_first_the_newest(tmp_path: Path) -> None:
    first = Keys.load(tmp_path / "keys").current("srs")
    put_in_front(tmp_path / "keys" / "srs.key", KEY)
    keys = Keys.load(tmp_path / "keys")
    assert keys.current("srs") == KEY
    assert keys.all("srs") == (KEY, first)


def test_a_temporary_file_left_by_a_crash_is_no_obstacle(tmp_path: Path) -> None:
    left = tmp_path / "keys" / ".srs.key.new"
    left.parent.mkdir(mode=0o700)
    left.write_text("half a k")
    keys = Keys.load(tmp_path / "keys")
    assert Keys.load(tmp_path / "keys").current("srs") == keys.current("srs")
    assert not left.exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_file_open_to_others_is_refused_with_what_to_do(tmp_path: Path, mode: int) -> None:
    Keys.load(tmp_path / "keys")
    path = tmp_path / "keys" / "seal.key"
    path.chmod(mode)
    with pytest.raises(KeysError) as caught:
        Keys.load(tmp_path / "keys")
    assert str(caught.value) == f"{path} is open to other users (mode {mode:o}): chmod 600 {path}"


def test_a_key_directory_open_to_others_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys").chmod(0o755)
    with pytest.raises(KeysError, match=r"open to other users \(mode 755\): chmod 700"):
        Keys.load(tmp_path / "keys")


@pytest.mark.parametrize("content", [b"", b"abcd\n", b"zz" * 32, b"\xff" * 64, b"aa" * 32 + b"\nbb\n"])
def test_a_malformed_key_file_is_refused_without_quoting_it(tmp_path: Path, content: bytes) -> None:
    Keys.load(tmp_path / "keys")
    (tmp_path / "keys" / "srs.key").write_bytes(content)
    with pytest.raises(KeysError) as caught:
        Keys.load(tmp_path / "keys")
    assert "srs.key is not a key file" in str(caught.value)
    assert "aaaa" not in str(caught.value)


def test_an_operating_system_error_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a file, not a directory")
    with pytest.raises(KeysError, match="keys: File exists"):
        Keys.load(tmp_path / "keys")


@given(st.text())
def test_what_was_sealed_opens_again(text: str) -> None:
    sealed = seal(KEY, text)
    assert sealed.isascii()
    assert sealed.isprintable()
    assert unseal([KEY], sealed) == text


def test_the_same_text_is_never_sealed_the_same_way_twice() -> None:
    assert seal(KEY, "secret") != seal(KEY, "secret")


def test_an_older_generation_still_opens(tmp_path: Path) -> None:
    sealed = Keys.load(tmp_path / "keys").seal("whsec_x")
    path = tmp_path / "keys" / "seal.key"
    put_in_front(path, KEY)
    assert Keys.load(tmp_path / "keys").unseal(sealed) == "whsec_x"
    path.write_text(f"{KEY.hex()}\n")
    with pytest.raises(SealError, match="sealed with a key that is not in data_dir/keys"):
        Keys.load(tmp_path / "keys").unseal(sealed)


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_a_value_altered_anywhere_does_not_open(position: int, flip: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(seal(KEY, "secret").removeprefix("s1.")))
    raw[position % len(raw)] ^= flip
    with pytest.raises(SealError):
        unseal([KEY], "s1." + base64.urlsafe_b64encode(raw).decode())


@pytest.mark.parametrize(
    "value",
    ["", "s1.", "s1.AAAA", "s2." + seal(KEY, "x")[3:], seal(KEY, "x")[3:], "s1.ä", "s1.A"],
    ids=["empty", "nothing sealed", "too short", "another version", "no version", "not ASCII", "no base64"],
)
def test_what_is_no_sealed_value_is_refused(value: str) -> None:
    with pytest.raises(SealError, match="not a sealed value"):
        unseal([KEY], value)


def test_another_instance_cannot_open_it() -> None:
    with pytest.raises(SealError):
        unseal([OTHER], seal(KEY, "secret"))


def test_a_token_is_made_of_256_given_random_bits() -> None:
    assert new_token(lambda size: bytes(range(size))) == "vr_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    assert len({new_token() for _ in range(100)}) == 100


def test_the_hash_of_a_token_is_its_sha256() -> None:
    assert token_hash("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_token_that_is_no_valid_text_hashes_without_an_error() -> None:
    assert len(token_hash("vr_\udcff")) == 64


def test_what_keys_there_are_is_told_without_them(tmp_path: Path) -> None:
    Keys.load(tmp_path / "keys")
    put_in_front(tmp_path / "keys" / "srs.key", KEY)
    keys = Keys.load(tmp_path / "keys")
    files = {file.name: file for file in keys.files()}
    assert {name: file.generations for name, file in files.items()} == {"loop": 1, "srs": 2, "links": 1, "seal": 1}
    assert files["srs"].path.stat().st_mtime == files["srs"].written_at
    assert keys.current("srs").hex() not in repr(files)


def test_the_keys_do_not_show_in_a_representation(tmp_path: Path) -> None:
    keys = Keys.load(tmp_path / "keys")
    assert keys.current("srs").hex() not in repr(keys)
    assert repr(keys.current("srs")) not in repr(keys)
