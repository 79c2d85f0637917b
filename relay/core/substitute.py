"""Local parts of our own making: unique addresses that survive being read aloud, and names for a pool.

A unique local part is 60 random bits as 12 base-32 symbols and a check symbol, grouped 4-4-5: ``k7f2-9qmx-4t8ep``.
The alphabet leaves out i, l, o (they look like 1 and 0) and u. Groups of four are how people dictate card and
telephone numbers; the check symbol rides in the last group, for a lone letter after a hyphen gets lost.

The check. Symbols are elements of GF(32) = GF(2)[x]/(x^5 + x^2 + 1), in which x generates all 31 non-zero elements.
A word s0 … s12 is valid when its polynomial vanishes at x::

    s0·x^12 + s1·x^11 + … + s11·x + s12 = 0

Position i has the weight x^(12-i); the 13 weights are distinct and none is zero, hence always detected:

    error                                 changes the sum by                  zero only if
    one symbol a -> b                     weight · (a - b)                    a = b
    two symbols swapped, at any distance  (weight_i - weight_j) · (a - b)     a = b
    twins, aa -> bb, at any distance      (weight_i + weight_j) · (a - b)     a = b

ISO 7064 MOD 37,36 needs a larger alphabet for its check symbol, and Luhn modulo 32 misses some swaps.
"""

from __future__ import annotations

from collections.abc import Collection

from relay.core.address import MAX_LOCAL
from relay.core.model import fold, quote_local

#: Octets of randomness that mint() takes; the last four bits of them are not used.
RANDOM_OCTETS = 8
#: Symbols of a unique local part without its hyphens: 12 random ones and the check.
SYMBOLS = 13

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_VALUE = {symbol: value for value, symbol in enumerate(_ALPHABET)}
_HEARD = str.maketrans("oil", "011")  # what people type for what they were told
_REDUCTION = 0b100101  # x^5 + x^2 + 1


def mint(random: bytes) -> str:
    """A unique local part made from exactly RANDOM_OCTETS octets of a cryptographic random source.

    The same octets give the same name; the caller makes sure that it is not taken. Raises ValueError.
    """
    if len(random) != RANDOM_OCTETS:
        raise ValueError(f"mint() takes {RANDOM_OCTETS} random octets")
    bits = int.from_bytes(random, "big") >> 4
    values = [bits >> shift & 31 for shift in range(55, -1, -5)]
    values.append(_times_x(_sum(values)))  # subtraction is addition here: what makes the whole sum zero
    return _grouped("".join(_ALPHABET[value] for value in values))


def is_valid(local: str) -> bool:
    """Whether ``local`` could be a unique local part, as minted or as misheard. It need not have been issued."""
    return normalise(local) is not None


def normalise(local: str) -> str | None:
    """The unique local part that ``local`` was meant to be, as mint() writes it; None when it can't be one.

    Forgives case, o for 0, i and l for 1, and missing, extra or displaced hyphens. One name in 32 of the right
    length passes the check by chance, so look the name up as it came first, and this one only then.
    """
    if len(local) > MAX_LOCAL:
        return None
    symbols = fold(local).replace("-", "").translate(_HEARD)
    if len(symbols) != SYMBOLS or any(symbol not in _VALUE for symbol in symbols):
        return None
    if _sum([_VALUE[symbol] for symbol in symbols]) != 0:
        return None
    return _grouped(symbols)


def pool_names(stem: str, count: int, taken: Collection[str]) -> list[str]:
    """``count`` generated pool local parts: info1, info2, …, passing over those ``taken`` (in any case of letters).

    The same arguments give the same names, so a configuration with ``pool_size`` means the same pool at each start.
    Raises ValueError when the stem is not a plain dot-atom without plus signs, or a name would exceed 64 octets.
    """
    if quote_local(stem) != stem or not stem.isascii() or "+" in stem:
        raise ValueError("stem is not a plain local part")
    folded = {fold(name) for name in taken}
    names: list[str] = []
    for number in range(1, count + len(folded) + 1):  # enough, were every taken name in the way
        if len(names) >= count:
            break
        name = f"{stem}{number}"
        if len(name) > MAX_LOCAL:
            raise ValueError(f"name longer than {MAX_LOCAL} octets")
        if fold(name) not in folded:
            names.append(name)
    return names


def _times_x(value: int) -> int:
    value <<= 1
    return value ^ _REDUCTION if value & 32 else value


def _sum(values: list[int]) -> int:
    total = 0
    for value in values:
        total = _times_x(total) ^ value
    return total


def _grouped(symbols: str) -> str:
    return f"{symbols[:4]}-{symbols[4:8]}-{symbols[8:]}"
