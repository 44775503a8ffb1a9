"""The narrow seam under all manifest stores: one place that swaps a head if nobody changed it meanwhile.

The rules of publication live above it, once (:mod:`~x2l_cluster.state.steps`), so a backend has no rules to get wrong:
it keeps bytes, compares heads, appends records, and counts epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Slot(NamedTuple):
    """The place of one manifest."""

    tenant: str
    video: str
    recipe: str


class Snapshot(NamedTuple):
    """A manifest as stored: its head, the records after the asked-for cursor, and the cursor behind the last."""

    head: bytes
    records: Sequence[bytes]
    cursor: int


class Shelf(Protocol):
    """Keeps heads and record logs. Names it gets are checked. Raises StoreUnavailable, StoreFull, ManifestCorrupt."""

    @property
    def durable(self) -> bool: ...

    def next_epoch(self, tenant: str) -> int:
        """A number above all earlier ones of this tenant, deletions or not."""
        ...

    def epoch(self, tenant: str) -> int:
        """The last such number; 0 before the first."""
        ...

    def tenants(self) -> list[str]:
        """Who was ever given such a number, in no order."""
        ...

    def read(self, slot: Slot, after: int = 0) -> Snapshot | None:
        """One consistent snapshot; None when nothing is there. ``after`` is a cursor of an earlier answer, or 0."""
        ...

    def swap(self, slot: Slot, expected: bytes | None, head: bytes, records: Sequence[bytes]) -> int | None:
        """Atomically: if the head is ``expected`` (None: absent), replaces it and appends ``records``.

        Returns the new cursor, or None when the head is another one; nothing has changed then.
        """
        ...

    def heads(self, tenant: str, video: str | None = None) -> list[bytes]:
        """Heads of all manifests of a video, or of the tenant."""
        ...

    def drop(self, tenant: str, video: str, recipe: str | None = None) -> bool:
        """Removes all manifests and bindings of a video at once; tells whether there was anything.

        With a recipe only that one's, and the bindings if it was the last.
        """
        ...

    def bind(self, tenant: str, content: str, video: str) -> str:
        """Binds unless bound; returns what is bound."""
        ...

    def find(self, tenant: str, content: str) -> str | None: ...

    def close(self) -> None: ...
