"""What processes that share an arena agree on beside blobs: whose turn it is to fetch one, who may still bring some.

Kernel locks on bytes of the arena's file (:mod:`~x2l_cluster.kv.host.locks`), so whatever is held ends with its holder.
A file that was removed and made anew is another arena, and with it another node.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from x2l_cluster.errors import StoreUnavailable
from x2l_cluster.kv.files import errors_as_store
from x2l_cluster.kv.host.leases import Leases
from x2l_cluster.kv.host.locks import Locks, claim_within, slot_byte, turn_byte, video_slot
from x2l_cluster.kv.host.names import hash_of, name_of, prefix_of
from x2l_cluster.types import BlockKey

_LONGEST_NAP_S: Final = 4e-3
"""Who waits for a fetch waits for milliseconds."""


class Node:
    """Agreements between the processes that have one arena open.

    Args:
        path: the arena, which exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with errors_as_store(path):
            self._turns, self._alone = Locks(path), Locks(path)
            self._bringing = Leases(Locks(path))
        self._clearing = threading.Lock()
        self._cleared: int | None = None

    @contextmanager
    def turn(self, key: BlockKey, patience_s: float) -> Iterator[bool]:
        """Keeps other processes that ask for their turn with this key waiting, and yields True; False after waiting in
        vain for a process that may be stopped: then go on without it.

        Threads of one process must agree among themselves.
        """
        byte = turn_byte(name_of(key).hash)
        mine = False
        with suppress(OSError):  # no lock is no reason to do without the blob
            mine = claim_within(self._turns, byte, patience_s, longest_nap_s=_LONGEST_NAP_S)
        try:
            yield mine
        finally:
            if mine:
                self._turns.end(byte)

    def enter(self, tenant: str, video: str) -> bool:
        """From now until :meth:`leave` this process may bring blobs of the video into the arena.

        False, and nothing to leave, when somebody is clearing it.
        """
        slot = _slot(tenant, video)
        with suppress(OSError):
            return slot != self._cleared and self._bringing.take(slot)
        return False

    def leave(self, tenant: str, video: str) -> None:
        """Undoes one :meth:`enter`."""
        self._bringing.end(_slot(tenant, video))

    @contextmanager
    def alone(self, tenant: str, video: str, patience_s: float) -> Iterator[None]:
        """Nobody of the node, this process included, may bring blobs of the video meanwhile.

        Raises StoreUnavailable after waiting in vain for those who were about to.
        """
        slot = _slot(tenant, video)
        with self._clearing, errors_as_store(self._path):
            self._cleared = slot  # else a busy process would keep itself waiting
            try:
                if not claim_within(self._alone, slot_byte(slot), patience_s, longest_nap_s=_LONGEST_NAP_S):
                    raise StoreUnavailable(
                        f"another process of this node has been fetching blocks of video {video} for {patience_s} s, "
                        "and may be stopped: end or continue it, then delete the video again"
                    )
                yield
            finally:
                self._cleared = None
                self._alone.end(slot_byte(slot))

    def close(self) -> None:
        """Ends everything this process holds; in a forked child leaves it to the parent, whose it is."""
        self._turns.close()
        self._alone.close()
        self._bringing.forget()


def _slot(tenant: str, video: str) -> int:
    return video_slot(hash_of(prefix_of(tenant, video)))
