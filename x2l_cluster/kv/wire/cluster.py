"""Which server of a cluster holds a key: 16384 slots, learnt from redirections and from any server's map.

The rules: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from __future__ import annotations

from binascii import crc_hqx
from threading import Lock
from typing import Final

from x2l_cluster.kv.wire.address import Address
from x2l_cluster.kv.wire.errors import Refusal
from x2l_cluster.kv.wire.resp import Reply

SLOTS: Final = 16384
_MAX_PORT: Final = 65535


def slot_of(key: bytes) -> int:
    """The slot of a key: that of its hash tag ``{…}`` if it has one that is not empty."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


def redirection(refusal: Refusal, asked: Address) -> tuple[int, Address] | None:
    """Slot and server a ``MOVED`` or ``ASK`` names; an empty host is the one that was asked. None if it is none."""
    words = refusal.text.split(" ")
    if len(words) != 3 or words[0] not in ("MOVED", "ASK") or not words[1].isdecimal() or int(words[1]) >= SLOTS:
        return None
    host, _, port = words[2].rpartition(":")
    address = _address(host, port, asked)
    return (int(words[1]), address) if address else None


class Topology:
    """The map of slots. Without a cluster it stays empty, and every key belongs to the seed."""

    def __init__(self, seed: Address) -> None:
        self._seed = seed
        self._lock = Lock()
        self._owners: dict[int, Address] = {}

    @property
    def is_cluster(self) -> bool:
        return bool(self._owners)

    def owner(self, key: bytes) -> Address:
        """Whom to ask first."""
        return self._owners.get(slot_of(key), self._seed) if self._owners else self._seed

    def moved(self, slot: int, address: Address) -> None:
        with self._lock:
            self._owners = {**self._owners, slot: address}

    def servers(self) -> list[Address]:
        """The seed and everybody else known."""
        return list(dict.fromkeys((self._seed, *self._owners.values())))

    def learn(self, slots: Reply, asked: Address) -> None:
        """Takes over the answer to ``CLUSTER SLOTS``; lines that make no sense are skipped."""
        owners: dict[int, Address] = {}
        for row in slots if isinstance(slots, list) else ():
            match row:
                case [int(first), int(last), [host, int(port), *_], *_] if 0 <= first <= last < SLOTS:
                    name = host.decode(errors="replace") if isinstance(host, bytes) else ""
                    if address := _address(name, str(port), asked):
                        owners.update(dict.fromkeys(range(first, last + 1), address))
                case _:
                    continue
        if owners:
            with self._lock:
                self._owners = owners


def _address(host: str, port: str, asked: Address) -> Address | None:
    host = (host if host != "?" else "") or asked.host
    if not host or not port.isdecimal() or not 0 < int(port) <= _MAX_PORT:
        return None
    return Address(host=host, port=int(port))
