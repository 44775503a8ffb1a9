"""Which addresses a server may connect to on a stranger's behalf: public ones, and what its operator allows."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Final

from x2l_cluster.errors import FetchFailed, InvalidInput, SourceRefused

Address = IPv4Address | IPv6Address
Resolver = Callable[[str, int], Sequence[str]]

_NAT64: Final = ip_network("64:ff9b::/96")


def resolve(host: str, port: int) -> list[str]:
    """All addresses of a host. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(where[0]).partition("%")[0] for *_, where in found))


class Gate:
    """Resolves a name once and gives an address that was checked, so that no second look can give another.

    Args:
        allow: host names, addresses and networks (``10.1.0.0/16``) that are let through whatever they are.
    """

    def __init__(self, allow: Sequence[str] = (), *, resolver: Resolver = resolve) -> None:
        self._resolver = resolver
        self._hosts: set[str] = set()
        self._networks: list[Any] = []
        for item in allow:
            try:
                self._networks.append(ip_network(item))
            except ValueError:
                if "/" in item:
                    raise InvalidInput(f"{item!r} is neither a host name nor a network (10.0.0.0/8)") from None
                self._hosts.add(item.lower())

    def address(self, host: str, port: int) -> str:
        """An address of the host to connect to.

        Raises:
            SourceRefused: one of its addresses is not public: then none of them is trusted.
            FetchFailed: it has none.
        """
        try:
            found = [ip_address(text) for text in self._resolver(host, port)]
        except (OSError, UnicodeError, ValueError) as error:
            raise FetchFailed(f"the host {host} cannot be found ({error}); check the URL") from error
        if not found:
            raise FetchFailed(f"the host {host} has no address; check the URL")
        if host.lower() not in self._hosts and not all(self._allows(address) for address in found):
            raise SourceRefused(f"the host {host} is not a public one; upload the file instead")
        return str(found[0])

    def _allows(self, address: Address) -> bool:
        return any(address in network for network in self._networks) or is_public(address)


def is_public(address: Address) -> bool:
    """Neither private, loopback, link-local (where clouds keep their metadata), multicast, reserved, nor one of those
    inside an IPv6 address that carries an IPv4 one."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)
