"""relay/core/charset.py: labelled, mislabelled and unlabelled text."""

from __future__ import annotations

import encodings
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.charset import codec, decode, guess
from tests.enquiries import CHINESE as CHINESE_LETTERS
from tests.enquiries import OCTETS

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


@pytest.mark.parametrize(("text", "charset"), OCTETS)
def test_a_short_letter_without_a_label_is_recognised(text: str, charset: str) -> None:
    if charset in ("koi8-r", "cp866"):
        text = text.translate({ord("№"): "N", ord("«"): '"', ord("»"): '"'})  # these old charsets have none
    octets = text.encode(charset)
    assert decode(octets) == text


@pytest.mark.parametrize(
    ("text", "charset", "label"),
    [
        (RUSSIAN, "utf-8", "windows-1251"),
        (RUSSIAN, "utf-8", "koi8-r"),
        ("Café", "utf-8", "iso-8859-1"),
        (GERMAN, "utf-8", "windows-1252"),
        (JAPANESE, "utf-8", "iso-2022-jp"),
        (JAPANESE, "cp932", "iso-2022-jp"),
        (JAPANESE, "euc_jp", "iso-2022-jp"),
        (CHINESE, "gb18030", "utf-8"),
        (CHINESE, "utf-8", "gb2312"),
        (KOREAN, "utf-8", "us-ascii"),
        ("漢字測試", "gb18030", "gb2312"),
        ("Её", "cp1251", "windows-1251"),
        ("联通", "gb18030", "gb2312"),
    ],
)
def test_a_label_that_the_octets_belie_is_not_believed_and_another_one_is(text: str, charset: str, label: str) -> None:
    assert decode(text.encode(charset), label) == text


@pytest.mark.parametrize("text", CHINESE_LETTERS)
def test_chinese_is_read_by_its_label_unless_it_is_utf_8(text: str) -> None:
    assert decode(text.encode("gb18030"), "gb2312") == decode(text.encode(), "gb2312") == text


@pytest.mark.parametrize(
    ("label", "name"),
    [
        *((label, "cp1251") for label in ("cp-1251", "win-1251", "windows1251", "X-CP1251", "cp1251")),
        *((label, "koi8-r") for label in ("koi8", "koi8r", "cskoi8r")),
        *((label, "iso2022_jp_ext") for label in ("cp50220", "cp50221", "iso-2022-jp-ms", "csISO2022JP")),
        *((label, "gb18030") for label in ("gb_2312-80", "x-gb2312", "cp936", "windows-936", "x-gbk", "GBK")),
        *((label, "cp932") for label in ("windows-31j", "x-sjis", "ms932", "Shift-JIS")),
        *((label, "cp949") for label in ("windows-949", "ks_c_5601-1987", "euc-kr")),
        *((label, "big5hkscs") for label in ("x-big5", "cn-big5", "Big5")),
    ],
)
def test_the_labels_of_old_mailers_are_known(label: str, name: str) -> None:
    assert codec(label) == name


@pytest.mark.parametrize(
    "text", ["图纸.pdf", "图片", "Café", "né à", "Шум", "Ω μ", "é ж", "שלום", "Ёлка «Ель»", "naïf ×2", "Łódź"]
)
def test_a_word_of_two_scripts_is_no_utf_8_and_others_are(text: str) -> None:
    charset = "gb18030" if "图" in text else "utf-8"
    assert decode(text.encode(charset)) == text


def test_a_single_accented_letter_at_the_end_is_not_lost() -> None:
    assert decode("café".encode("cp1252")) == decode("café".encode("cp1252"), "iso-8859-1") == "café"


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


def test_python_does_not_keep_what_strangers_call_their_charsets() -> None:
    codec("utf-8")
    before = set(encodings._cache)  # there is no other way to look
    for label in ("cskoi\xfc8r", *(f"a{number:05}" for number in range(10_000))):
        assert decode(b"a", label) == "a"
    assert set(encodings._cache) - before <= {"cskoi8r"}


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.one_of(st.text(max_size=20), st.sampled_from(["utf-7", "utf-16", "hz", "big5"])))
def test_no_octets_under_no_label_raise(octets: bytes, label: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(decode(octets, label), str)


def test_guessing_looks_at_a_sample_only() -> None:
    octets = RUSSIAN.encode("koi8-r") * 60 + RUSSIAN.encode("cp1251") * 10_000
    assert guess(octets) == "koi8-u"  # KOI8-R with the letters that Ukrainian has besides
