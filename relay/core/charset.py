"""From octets to text by a charset label that may be wrong, unknown or absent. Nothing here raises for its input.

A label chooses one of Python's text codecs; the few that are quadratic, warn, or are no charset at all are never
chosen by a stranger. Unlabelled octets are ASCII or UTF-8 if they can be, else guessed. What cannot be decoded
becomes U+FFFD.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from functools import lru_cache

# What senders mean by these: the superset that their software writes (WHATWG Encoding, "Names and labels").
_MEANT = {
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "shift_jis": "cp932",
    "iso2022_jp": "iso2022_jp_ext",
    "big5": "big5hkscs",
}
_ALIASES = {
    "iso-8859-8-i": "iso8859-8",
    "iso-8859-8-e": "iso8859-8",
    "ks_c_5601-1987": "cp949",
    "unicode-1-1-utf-7": "utf-7",
    "windows-874": "cp874",
    "x-gbk": "gb18030",
    "x-mac-cyrillic": "mac-cyrillic",
    "x-sjis": "cp932",
}
_NEVER = frozenset({"ascii", "punycode", "idna", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"})
_MAX_LABEL = 64


@lru_cache(maxsize=256)
def codec(label: str) -> str | None:
    """The Python codec for a charset label, or None: absent, unknown, or ASCII (which 8-bit octets would belie)."""
    label = label.strip(" \t\"'").lower()[:_MAX_LABEL]
    try:
        found = codecs.lookup(_ALIASES.get(label, label)).name
        b" ".decode(found, "ignore")  # LookupError from the codecs that are no text encodings
    except (LookupError, ValueError):
        return None
    return None if found.replace("-", "_") in _NEVER else _MEANT.get(found, found)


def decode(octets: bytes, label: str = "") -> str:
    """Text of ``octets``, whose last character may be cut off. UTF-8 that is mostly wrong counts as unlabelled."""
    name = codec(label) if label else None
    if name is None and octets.isascii():
        # Japanese mail forgets the label, not the escape sequence (RFC 1468)
        return octets.decode("iso2022_jp_ext" if b"\x1b$" in octets else "ascii", "replace")
    if name in (None, "utf-8"):
        try:
            return _so_far("utf-8", octets).removeprefix("\ufeff")
        except UnicodeDecodeError:
            if name is None or _mostly_wrong(octets):
                name = guess(octets)
    return octets.decode(name or "utf-8", "replace").removeprefix("\ufeff")


def _so_far(name: str, octets: bytes) -> str:
    """Strictly decoded but for an unfinished last character; raises UnicodeDecodeError."""
    return codecs.getincrementaldecoder(name)().decode(octets)


def _mostly_wrong(octets: bytes) -> bool:
    text = octets[:_SAMPLE].decode("utf-8", "replace")
    return 2 * text.count("\ufffd") > sum(char > "\x7f" for char in text)


_SAMPLE = 4096
_FREQUENT_HAN = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里"
    "用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日"
    "您请谢谢问产品价格公司们信息电话邮件見語時間御願致社様申込度購入"
)


def guess(octets: bytes) -> str:
    """The codec that makes the likeliest text of octets that are not UTF-8; "cp1252" where nothing speaks for another.

    Judges the first 4 KiB. Cyrillic, Western, Chinese, Japanese and Korean are told apart by how ordinary the
    letters are that each codec yields: the share of the 8-bit octets that become common ones.
    """
    sample = octets[:_SAMPLE]
    best, most = "cp1252", _western(sample.decode("cp1252", "replace"))
    for name in ("cp1251", "koi8-r", "cp866", "euc_jp", "gb18030", "cp932", "euc_kr", "big5"):
        try:
            text = _so_far(name, sample)
        except UnicodeDecodeError:
            continue
        score = _cyrillic(text) if name in ("cp1251", "koi8-r", "cp866") else _east_asian(text)
        if score > most:
            best, most = name, score
    return _MEANT.get(best, best)


_MIXED_WORD = re.compile("[A-Za-z][^\x00-\xbf]|[^\x00-\xbf][A-Za-z]")
_CASE_BREAK = re.compile("[а-яё][А-ЯЁ]")
_TWO_LETTERS = re.compile("[А-яЁё]{2}")
_ACCENTED_PAIR = re.compile("[À-ÖØ-öø-ÿ]{2}")
_HANGUL = re.compile("[가-힣]")


def _cyrillic(text: str) -> float:
    if not _TWO_LETTERS.search(text):
        return -1.0  # a pound sign, a hard space: hardly Russian
    odd = len(_MIXED_WORD.findall(text)) + len(_CASE_BREAK.findall(text))
    return _share(text, _cyrillic_letter, odd)


def _western(text: str) -> float:
    return _share(text, _western_letter, len(_ACCENTED_PAIR.findall(text)))


def _east_asian(text: str) -> float:
    korean = _HANGUL.search(text) is not None
    return _share(text, _korean_letter if korean else _east_asian_letter, len(_MIXED_WORD.findall(text)))


def _share(text: str, worth: Callable[[str], float], odd: int) -> float:
    """From 1.0, where every 8-bit character is an ordinary one, down; ``odd`` are things no writer does."""
    worths = [worth(char) for char in text if char > "\x7f"]
    return (sum(worths) - 2.0 * odd) / (len(worths) or 1)


def _cyrillic_letter(char: str) -> float:
    return 1.0 if "а" <= char <= "я" else 0.5 if "А" <= char <= "Я" or char in "Ёёіїєґ№«»—–“”…" else -1.0


def _western_letter(char: str) -> float:
    if "à" <= char <= "ÿ" or char in "ÄÖÜßÉ":
        return 0.8
    return 0.4 if "\xa0" <= char <= "Þ" or char in "‘’“”–—…€" else -1.0


def _east_asian_letter(char: str) -> float:
    if "ぁ" <= char <= "ヿ" or char in _FREQUENT_HAN:
        return 1.0
    return 0.4 if "一" <= char <= "鿿" or "　" <= char <= "〗" or "！" <= char <= "～" else -1.0


def _korean_letter(char: str) -> float:
    return 1.0 if "가" <= char <= "힣" else 0.4 if "　" <= char <= "〗" or "！" <= char <= "～" else -1.0
