"""relay/core/charset.py: labelled, mislabelled and unlabelled text."""

from __future__ import annotations

import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.charset import codec, decode, guess

RUSSIAN = "Здравствуйте, хотел бы узнать о наличии товара и стоимости доставки в Казань. Спасибо!"
JAPANESE = "こんにちは、製品の在庫と送料について教えてください。"
CHINESE = "您好,我想了解一下产品的库存情况以及运费。谢谢!"
KOREAN = "안녕하세요, 제품 재고와 배송비에 대해 알고 싶습니다. 감사합니다."
GERMAN = "Sehr geehrte Damen und Herren, für eine größere Bestellung hätte ich gern ein Angebot."
FRENCH = "Bonjour, où est ma commande passée à Noël ? Merci, à bientôt. Hélène"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (RUSSIAN, "utf-8"),
        (RUSSIAN, "windows-1251"),
        (RUSSIAN, "KOI8-R"),
        (RUSSIAN, "cp866"),
        (RUSSIAN, "iso-8859-5"),
        (JAPANESE, "iso-2022-jp"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc-jp"),
        (CHINESE, "gb18030"),
        (CHINESE, "gb2312"),
        (KOREAN, "euc-kr"),
        (KOREAN, "ks_c_5601-1987"),
        (GERMAN, "iso-8859-1"),
        (GERMAN, '"ISO-8859-15" '),
    ],
)
def test_text_is_decoded_by_its_label(text: str, label: str) -> None:
    encoded = text.encode(codec(label) or "")
    assert decode(encoded, label) == text


@pytest.mark.parametrize(
    ("text", "charset"),
    [
        (RUSSIAN, "utf-8"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8-r"),
        (RUSSIAN, "cp866"),
        ("Привет", "cp1251"),
        ("Заявка с сайта", "koi8-r"),
        ("Order 1234: заказ iPhone 15", "cp1251"),
        (JAPANESE, "iso2022_jp"),
        (JAPANESE, "cp932"),
        (JAPANESE, "euc_jp"),
        (CHINESE, "gb18030"),
        (KOREAN, "euc_kr"),
        (GERMAN, "cp1252"),
        (FRENCH, "cp1252"),
        ("Grüße", "cp1252"),
        ("Robbie signs £80m deal", "cp1252"),
        ("He said “don’t” – really…", "cp1252"),
    ],
)
@pytest.mark.parametrize("label", ["", "us-ascii", "unknown-8bit", "x-nonsense"])
def test_unlabelled_text_is_recognised(text: str, charset: str, label: str) -> None:
    assert decode(text.encode(charset), label) == text


def test_russian_that_is_wrongly_labelled_utf_8_is_recognised() -> None:
    assert decode(RUSSIAN.encode("cp1251"), "utf-8") == RUSSIAN


def test_one_broken_character_does_not_make_utf_8_another_charset() -> None:
    assert decode("Привет, ".encode() + b"\xff" + "мир".encode(), "utf-8") == "Привет, \ufffdмир"


def test_a_character_cut_off_at_the_end_does_not_make_utf_8_another_charset() -> None:
    assert decode(RUSSIAN.encode()[:-2]) == RUSSIAN[:-2]


def test_latin_1_means_windows_1252() -> None:
    assert decode(b"\x93quoted\x94 \x80 5", "iso-8859-1") == "“quoted” € 5"


def test_a_byte_order_mark_is_dropped() -> None:
    assert decode(b"\xef\xbb\xbfhello", "utf-8") == decode(b"\xef\xbb\xbfhello") == "hello"


@pytest.mark.parametrize(
    "label",
    [
        *("zlib", "bz2", "hex", "base64", "rot13", "uu", "punycode", "idna", "unicode_escape", "raw_unicode_escape"),
        *("undefined", "mbcs", "", "a\0b", "ü", "utf-8" * 1_000, "../../etc/passwd"),
    ],
)
def test_no_stranger_chooses_a_codec_that_is_no_charset(label: str) -> None:
    assert codec(label) is None
    assert decode(b"x9c\\u0041", label) == "x9c\\u0041"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.one_of(st.text(max_size=20), st.sampled_from(["utf-7", "utf-16", "hz", "big5"])))
def test_no_octets_under_no_label_raise(octets: bytes, label: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(decode(octets, label), str)


def test_guessing_looks_at_a_sample_only() -> None:
    octets = RUSSIAN.encode("koi8-r") * 100_000
    began = time.process_time()
    assert guess(octets) == "koi8-r"
    assert time.process_time() - began < 0.2
