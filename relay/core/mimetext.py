"""Header values of a message as text: encoded words, parameters, file names; and format=flowed."""

from __future__ import annotations

import re
from binascii import a2b_base64, a2b_qp

from relay.core.charset import decode
from relay.core.mime import Extracted, Value, header_block, header_fields, own_fields

MAX_SUBJECT = 998  # characters
MAX_NAME = 150  # characters
MAX_NAME_OCTETS = 240  # of UTF-8: file systems take 255, and a browser adds ".crdownload" while it loads
_MAX_GIVEN_OCTETS = 1_024

# encoded-word = "=?" charset "?" encoding "?" encoded-text "?=" (RFC 2047 §2; charset*language: RFC 2231 §5).
# Spaces in the text are wrong and common.
_WORD = re.compile(rb"=\?([^?\s]{1,64})\?([bq])\?([^?]*)\?=", re.IGNORECASE)
_CONTROLS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


def header_text(value: bytes) -> str:
    """An unfolded field value with its encoded words decoded, white space and controls as single spaces."""
    if b"=?" not in value:
        return _CONTROLS.sub(" ", decode(value)).strip()
    text: list[str] = []
    at = 0
    label = ""
    octets: list[bytes] = []  # neighbouring words of one charset are decoded together: some split a character
    for match in _WORD.finditer(value):
        between = value[at : match.start()]
        word_label = match[1].partition(b"*")[0].decode("latin-1").lower()
        if octets and (between.strip() or word_label != label):
            text.append(decode(b"".join(octets), label))
            octets = []
        if between.strip():
            text.append(decode(between))
        label = word_label
        octets.append(_encoded_text(match[2], match[3]))
        at = match.end()
    text.append(decode(b"".join(octets), label))
    text.append(decode(value[at:]))
    return _CONTROLS.sub(" ", "".join(text)).strip()


def _encoded_text(encoding: bytes, encoded: bytes) -> bytes:
    if encoding in b"qQ":
        return a2b_qp(encoded, header=True)
    symbols = re.sub(rb"[^A-Za-z0-9+/]", b"", encoded)
    if len(symbols) % 4 == 1:
        symbols = symbols[:-1]
    return a2b_base64(symbols + b"=" * (-len(symbols) % 4))


def subject_text(value: bytes | None) -> str | None:
    """A Subject as it is shown, at most MAX_SUBJECT characters; None where there is none or it is empty."""
    return header_text(value)[:MAX_SUBJECT].rstrip() or None if value else None


def headers_only(message: bytes) -> Extracted:
    """What the header of a message gives when the whole can't be read; looks at MAX_HEADER octets."""
    block, _ = own_fields(*header_block(message, 0, len(message)))
    return Extracted(subject_text(header_fields(block).get("subject")), None, False, (), True)


def parameter_text(value: Value) -> str:
    """A name in a parameter: by its RFC 2231 charset, else with the encoded words that RFC 2047 §5 forbids there."""
    octets = value.octets[:_MAX_GIVEN_OCTETS]
    return decode(octets, value.charset) if value.charset else header_text(octets)


_EXTENSIONS = {
    "application/gzip": "gz",
    "application/json": "json",
    "application/msword": "doc",
    "application/pdf": "pdf",
    "application/pgp-encrypted": "asc",
    "application/pgp-keys": "asc",
    "application/pgp-signature": "asc",
    "application/pkcs7-mime": "p7m",
    "application/pkcs7-signature": "p7s",
    "application/rtf": "rtf",
    "application/vnd.ms-excel": "xls",
    "application/vnd.ms-powerpoint": "ppt",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": "pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/x-pkcs7-mime": "p7m",
    "application/x-pkcs7-signature": "p7s",
    "application/x-zip-compressed": "zip",
    "application/xml": "xml",
    "application/zip": "zip",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg",
    "audio/wav": "wav",
    "image/bmp": "bmp",
    "image/gif": "gif",
    "image/heic": "heic",
    "image/jpeg": "jpg",
    "image/jpg": "jpg",
    "image/png": "png",
    "image/svg+xml": "svg",
    "image/tiff": "tiff",
    "image/webp": "webp",
    "message/delivery-status": "txt",
    "message/disposition-notification": "txt",
    "message/global": "eml",
    "message/rfc822": "eml",
    "text/calendar": "ics",
    "text/csv": "csv",
    "text/html": "html",
    "text/plain": "txt",
    "text/rfc822-headers": "txt",
    "text/vcard": "vcf",
    "text/x-vcard": "vcf",
    "text/xml": "xml",
    "video/mp4": "mp4",
    "video/quicktime": "mov",
}
_TNEF = frozenset({"application/ms-tnef", "application/vnd.ms-tnef"})

# Invisible characters, and the marks that make "gpj.exe" read "exe.jpg" (Unicode TR 36 §2.1)
_HIDDEN = re.compile("[\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]")


# What Windows takes for no character of a name ("a:b" is a stream of "a", "?" a wildcard); the slashes are dealt with
_NOT_IN_NAMES = re.compile('[<>:"|?*]')
# Names that Windows takes for a device, whatever follows their first dot
_DEVICE = re.compile(
    r"(?:CON|PRN|AUX|NUL|CLOCK\$|CON(?:IN|OUT)\$|(?:COM|LPT)[0-9\u00b9\u00b2\u00b3]) *(?:\.|\Z)", re.IGNORECASE
)
_LONGEST_EXTENSION = 10  # characters that are kept of a name that is too long


def file_name(given: str, kind: str, index: int) -> str:
    """A safe name for attachment ``index`` (from 0) of media type ``kind``, never empty: see ``safe_name``.

    Nothing given: "part-3.bin", by type.
    """
    if name := safe_name(given):
        return name
    if kind in _TNEF:
        return "winmail.dat"
    return f"part-{index + 1}.{_EXTENSIONS.get(kind) or ('txt' if kind.startswith('text/') else 'bin')}"


def safe_name(given: str) -> str:
    """A name under which a file can be saved on Windows and on Unix; "" where nothing is left of it.

    Of a path the last segment counts (RFC 2183 §2.3). No controls and nothing invisible, none of ``<>:"|?*``, no device
    of Windows ("_NUL.txt"), no dot, space or dash at its start (hidden files, options of commands), no dot or space at
    its end (Windows drops them); at most MAX_NAME characters and MAX_NAME_OCTETS octets, an extension is kept.
    """
    name = _HIDDEN.sub("", _CONTROLS.sub(" ", given)).replace("\\", "/")
    name = _CONTROLS.sub(" ", name.strip(" /").rpartition("/")[2])  # what was hidden can have parted two spaces
    name = _NOT_IN_NAMES.sub("_", name).lstrip(" .-").rstrip(" .")
    if _DEVICE.match(name):
        name = f"_{name}"
    if _fits(name):
        return name
    stem, dot, extension = name.rpartition(".")
    if not stem or len(extension) > _LONGEST_EXTENSION:
        stem, dot, extension = name, "", ""
    room = MAX_NAME - len(dot + extension)
    octets = stem[:room].encode()[: MAX_NAME_OCTETS - len((dot + extension).encode())]
    return octets.decode("utf-8", "ignore").rstrip(" .") + dot + extension


def _fits(name: str) -> bool:
    return len(name) <= MAX_NAME and len(name.encode()) <= MAX_NAME_OCTETS


def unflow(text: str, delete_space: bool) -> str:
    """Paragraphs of format=flowed text on one line each (RFC 3676 §4); ``text`` has LF line ends."""
    out: list[str] = []
    open_depth = -1  # quote depth of a paragraph that goes on, else -1
    for line in text.split("\n"):
        body = line.lstrip(">")
        depth = len(line) - len(body)
        if body.startswith(" "):
            body = body[1:]  # space-stuffing
        signature = body == "-- "
        if depth != open_depth or signature:
            out.append("\n" + ">" * depth + (" " if depth and body else ""))
        flowed = body.endswith(" ") and not signature
        out.append(body[:-1] if flowed and delete_space else body)
        open_depth = depth if flowed else -1
    return "".join(out)[1:]
