"""How much of a visitor's IP address is kept (relay.toml, [privacy] visitor_ip)."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

from relay.core.model import IpDetail

#: Leading bits that say which network, not which machine: what an access provider hands to many customers.
IPV4_BITS = 24
IPV6_BITS = 48


def kept_ip(ip: str | None, detail: IpDetail) -> str | None:
    """What is stored of an address; None for nothing, and for what is no address and so could not be cut.

    ``network`` keeps 24 bits of IPv4 and 48 of IPv6, the rest zero, as the text of the network's first address.
    """
    if ip is None or detail is IpDetail.NONE:
        return None
    if detail is IpDetail.FULL:
        return ip
    try:
        address = ip_address(ip.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.version == 4:
        return str(IPv4Network((int(address), IPV4_BITS), strict=False).network_address)
    return str(IPv6Network((int(address), _bits(address)), strict=False).network_address)


def _bits(address: IPv6Address) -> int:
    """A 6to4 address has the whole IPv4 address of its host behind its first 16 bits (RFC 3056 §2)."""
    return 16 + IPV4_BITS if address.sixtofour is not None else IPV6_BITS
