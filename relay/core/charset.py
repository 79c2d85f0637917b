"""From octets to text by a charset label that may be wrong, unknown or absent. Nothing here raises for its input.

A label chooses one of Python's text codecs; the few that are quadratic, warn, or are no charset at all are never
chosen by a stranger. Unlabelled octets are ASCII or UTF-8 if they can be, else guessed. What cannot be decoded
becomes U+FFFD.
"""

from __future__ import annotations

import codecs
import encodings
import pkgutil
import re
import unicodedata
from collections.abc import Callable
from encodings.aliases import aliases
from functools import lru_cache
from itertools import pairwise

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
    "cn-big5": "big5",
    "cp50220": "iso2022_jp",
    "cp50221": "iso2022_jp",
    "cp50222": "iso2022_jp",
    "csgb2312": "gb18030",
    "dos-866": "cp866",
    "gb-2312": "gb18030",
    "gb_2312-80": "gb18030",
    "iso-2022-jp-ms": "iso2022_jp",
    "iso-8859-8-e": "iso8859-8",
    "iso-8859-8-i": "iso8859-8",
    "koi8": "koi8-r",
    "koi8-ru": "koi8-u",
    "koi8r": "koi8-r",
    "koi8u": "koi8-u",
    "ks_c_5601-1987": "cp949",
    "unicode-1-1-utf-7": "utf-7",
    "windows-31j": "cp932",
    "x-big5": "big5",
    "x-euc-jp": "euc_jp",
    "x-gb2312": "gb18030",
    "x-gbk": "gb18030",
    "x-mac-cyrillic": "mac-cyrillic",
    "x-mac-roman": "mac-roman",
    "x-sjis": "cp932",
}
_CODE_PAGE = re.compile(r"(?:x-)?(?:cp|win|windows)-?(125\d|874|932|936|949)")
_NEVER = frozenset({"ascii", "punycode", "idna", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"})
_MAX_LABEL = 64
# Python keeps every name that it was ever asked for, so it is asked for none but these.
_KNOWN = frozenset(aliases) | {module.name for module in pkgutil.iter_modules(encodings.__path__)}


@lru_cache(maxsize=256)
def codec(label: str) -> str | None:
    """The Python codec for a charset label, or None: absent, unknown, or ASCII (which 8-bit octets would belie)."""
    label = label.strip(" \t\"'").lower()[:_MAX_LABEL]
    try:
        page = _CODE_PAGE.fullmatch(label)
        name = encodings.normalize_encoding(f"cp{page[1]}" if page else _ALIASES.get(label, label)).replace(".", "_")
        if name not in _KNOWN:
            return None
        found = codecs.lookup(name).name
        b" ".decode(found, "ignore")  # LookupError from the codecs that are no text encodings
    except (LookupError, ValueError):
        return None
    return None if found.replace("-", "_") in _NEVER else _MEANT.get(found, found)


def decode(octets: bytes, label: str = "") -> str:
    """Text of ``octets``, whose last character may be cut off. A label that makes mostly no text counts as absent."""
    name = codec(label) if label else None
    if octets.isascii():
        # Japanese mail forgets the label, not the escape sequence (RFC 1468)
        text = octets.decode(name or ("iso2022_jp_ext" if b"\x1b$" in octets else "ascii"), "replace")
    else:
        name = _believed(octets, name)
        text = _so_far(name, octets) if _is(octets, name) else octets.decode(name, "replace")
    return text.removeprefix("\ufeff")


def _believed(octets: bytes, name: str | None) -> str:
    """The codec for 8-bit ``octets`` that are labelled as ``name``."""
    fits = name is not None and _is(octets, name)
    if name != "utf-8" and _is(octets, "utf-8") and not (name and fits and _excludes_utf_8(octets, name)):
        return "utf-8" if _beyond_ascii(octets) and not _by_chance(octets) else name or guess(octets)
    return name if name and (fits or not _mostly_wrong(octets, name)) else guess(octets)


def _excludes_utf_8(octets: bytes, name: str) -> bool:
    """Whether octets that are UTF-8 are meant as ``name`` all the same, in which they are text too.

    Not if that is a charset of single octets: nobody writes "Ã©" or "РџСЂ". One "Её" is no proof of the contrary.
    In Chinese "璇烽棶" could be written, and the more usual characters decide.
    """
    if name == "gb18030":
        sample = octets[:_SAMPLE]
        return _east_asian(sample.decode(name, "ignore"), name) >= _east_asian(sample.decode("utf-8", "ignore"), name)
    single = len(b"\xe4\xe4".decode(name, "replace")) == 2
    return not single or (name != "cp1252" and _beyond_ascii(octets) == 1)


def _by_chance(octets: bytes) -> bool:
    """Whether UTF-8 is so short and odd that it is none: "图纸" in GBK is a Greek letter and a Hebrew point."""
    if sum(octet > 0x7F for octet in octets[:_SAMPLE]) > _SHORT:
        return False
    text = _so_far("utf-8", octets)
    return any(a > "\xbf" < b and _script(a) != _script(b) for a, b in pairwise(text) if max(a, b) <= "\u07ff")


def _script(char: str) -> str:
    return unicodedata.name(char, "").partition(" ")[0]


def _beyond_ascii(octets: bytes) -> int:
    """Whole characters beyond ASCII in octets that are UTF-8."""
    text = _so_far("utf-8", octets)
    return len(text) - len(text.encode("ascii", "ignore"))


def _is(octets: bytes, name: str) -> bool:
    """Whether this is text in that charset, but for an unfinished last character."""
    try:
        _so_far(name, octets)
    except UnicodeError:  # UTF-16 without a byte order mark is no UnicodeDecodeError
        return False
    return True


def _so_far(name: str, octets: bytes) -> str:
    """Strictly decoded but for an unfinished last character; raises UnicodeDecodeError."""
    return codecs.getincrementaldecoder(name)().decode(octets)


def _mostly_wrong(octets: bytes, name: str) -> bool:
    text = octets[:_SAMPLE].decode(name, "replace")
    return 2 * text.count("\ufffd") > sum(char > "\x7f" for char in text)


_SAMPLE = 4096
_SHORT = 12  # 8-bit octets
# What letters to a shop are made of, beyond the commonest letters of each language
_SIMPLIFIED = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里"
    "用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日"
    "您请谢问产品价格公司信息电话邮件钱货单运费询订购系联贵报质量"
)
_TRADITIONAL = frozenset(
    "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過發後作裡"
    "用道行所然家種事成方多經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣理心她本前開但因只從想實日"
    "您請謝問產品價格公司信息電話郵件錢貨單運費詢訂購係聯貴報質量"
)
_KANJI = frozenset(
    "日一国人年大十二本中長出三時行見月後前生五間上東四今金九入学高円子外八六下来気小七山話女北午百書先名川"
    "千水半男西電校語土木車何南毎白天母火右読友左休父雨様致社申込度購御願世株式会問合注文商品在庫送料納期支払"
    "資請求積番号件都内配価格知方法教急連絡返変更可能至質"
)
_HANGUL = frozenset(
    "이다는을가에의고하지한로사기어리도은를서자대시인해나제일그아있정수라부습니까안녕세요문배송비견적주격재감합보"
    "내전화얼마드려원구상품신청취소호번"
)
_COMMON_CYRILLIC = frozenset("оеаинтсрвлкмдпуіяызьб")


def guess(octets: bytes) -> str:
    """The codec that makes the likeliest text of octets that are not UTF-8; "cp1252" where nothing speaks for another.

    Judges the first 4 KiB. Cyrillic, Western, Chinese, Japanese and Korean are told apart by how ordinary the
    letters are that each codec yields: the share of the 8-bit octets that become common ones.
    """
    sample = octets[:_SAMPLE]
    best, most = "cp1252", _western(sample.decode("cp1252", "replace"))
    for name in ("cp1251", "koi8-u", "cp866", *_EAST_ASIAN):
        try:
            text = _so_far(name, sample)
        except UnicodeDecodeError:
            continue
        score = _east_asian(text, name) if name in _EAST_ASIAN else _cyrillic(text)
        if score > most:
            best, most = name, score
    return _MEANT.get(best, best)


_MIXED_WORD = re.compile("[A-Za-z][^\x00-\xbf]|[^\x00-\xbf][A-Za-z]")
_CASE_BREAK = re.compile("[а-яёіїєґ][А-ЯЁІЇЄҐ]")
_TWO_LETTERS = re.compile("[А-яЁё]{2}")
_ACCENTED_PAIR = re.compile("[À-ÖØ-öø-ÿ]{2}")
# Frequent characters; the charset that is ordered by use, and the last lead octet of its more frequent half
_EAST_ASIAN = {
    "gb18030": (_SIMPLIFIED, "gb2312", 0xD7),  # GB 2312, level 1
    "euc_jp": (_KANJI, "euc_jp", 0xCF),  # JIS X 0208, level 1
    "cp932": (_KANJI, "euc_jp", 0xCF),
    "euc_kr": (_HANGUL, "", 0),
    "big5": (_TRADITIONAL, "big5", 0xC6),
}


def _cyrillic(text: str) -> float:
    if not _TWO_LETTERS.search(text):
        return -1.0  # a pound sign, a hard space: hardly Russian
    return _share(text, _cyrillic_letter, len(_MIXED_WORD.findall(text)) + len(_CASE_BREAK.findall(text)))


def _western(text: str) -> float:
    return _share(text, _western_letter, len(_ACCENTED_PAIR.findall(text)))


def _east_asian(text: str, name: str) -> float:
    return _share(text, lambda char: _east_asian_letter(char, name), len(_MIXED_WORD.findall(text)))


def _share(text: str, worth: Callable[[str], float], odd: int) -> float:
    """From 1.0, where every 8-bit character is an ordinary one, down; ``odd`` are things no writer does."""
    worths = [worth(char) for char in text if char > "\x7f"]
    return (sum(worths) - 2.0 * odd) / (len(worths) or 1)


def _cyrillic_letter(char: str) -> float:
    if "А" <= char <= "я":  # KOI8 and windows-1251 read as each other swap the cases, so these must not decide
        return 1.0 if char.lower() in _COMMON_CYRILLIC else 0.6
    return 0.6 if char in "ЁёІіЇїЄєҐґ№«»—–“”„…\xa0" else -1.0


def _western_letter(char: str) -> float:
    if "à" <= char <= "ÿ" or char in "ÄÖÜßÉ":
        return 0.8
    return 0.4 if "\xa0" <= char <= "Þ" or char in "‘’“”„–—…€" else -1.0


def _east_asian_letter(char: str, name: str) -> float:
    frequent, ordered, last = _EAST_ASIAN[name]
    if char in frequent:
        return 1.0
    if "ぁ" <= char <= "ヿ":
        return 1.0 if frequent is _KANJI else -1.0
    if "가" <= char <= "힣":
        return 0.5 if name == "euc_kr" else -1.0
    if "一" <= char <= "鿿":
        if not ordered:
            return -1.0
        lead = char.encode(ordered, "ignore")[:1]
        return 0.6 if lead and lead[0] <= last else 0.2
    return 0.4 if "　" <= char <= "〗" or "！" <= char <= "～" else -1.0
