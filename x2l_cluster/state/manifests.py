"""The one :class:`~x2l_cluster.state.base.StateStore`, over any :class:`~x2l_cluster.state.shelf.Shelf`.

A step reads the manifest, applies its rule, and swaps the new head in for the one it read; if somebody was faster it
starts over. Steps are first tried on the manifest as last seen, so sealing costs one small swap however many chunks
there are. A refusal, or a step that changes nothing, is never believed of a remembered manifest: it is read again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Self

from x2l_cluster.errors import ManifestConflict, ManifestCorrupt, StateError, UnknownVideo
from x2l_cluster.state import steps
from x2l_cluster.state.base import VideoRecord
from x2l_cluster.state.codec import decode_head, encode_head, encode_row, merge_rows
from x2l_cluster.state.shelf import Shelf, Slot, Snapshot
from x2l_cluster.types import ChunkRow, Manifest, Recipe, SourceRef, VideoInfo, check_name

_REMEMBERED = 64
_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class _Seen:
    """A manifest as it was when last read or written, and where its log ended."""

    head: bytes
    born: int
    cursor: int
    manifest: Manifest


class Manifests:
    """Manifests on a shelf. ``clock`` gives seconds since 1970."""

    def __init__(self, shelf: Shelf, *, clock: Callable[[], float] = time.time) -> None:
        self._shelf, self._clock = shelf, clock
        self._seen: OrderedDict[Slot, _Seen] = OrderedDict()
        self._lock = Lock()

    @property
    def durable(self) -> bool:
        return self._shelf.durable

    # --- indexing ---------------------------------------------------------------------------------------------------

    def begin(
        self, tenant: str, video: str, recipe: Recipe, info: VideoInfo, source: SourceRef | None = None
    ) -> Manifest:
        def step(old: Manifest | None) -> Manifest:
            # A new number for every attempt: whoever was faster may hold a higher one than an attempt ago.
            epoch = self._shelf.next_epoch(tenant)
            return steps.begin(old, tenant=tenant, video=video, recipe=recipe, epoch=epoch, info=info, source=source)

        return self._change(_slot(tenant, video, recipe.digest), step, remembered=False)

    def grow(
        self,
        tenant: str,
        video: str,
        recipe_digest: str,
        *,
        revision: int,
        kept: int,
        info: VideoInfo,
        source: SourceRef,
    ) -> Manifest:
        slot = _slot(tenant, video, recipe_digest)

        def step(old: Manifest | None) -> Manifest:
            epoch = self._shelf.next_epoch(tenant)
            return steps.grow(_known(old, slot), epoch, revision=revision, kept=kept, info=info, source=source)

        return self._change(slot, step, remembered=False)

    def seal(self, tenant: str, video: str, recipe_digest: str, epoch: int, row: ChunkRow) -> Manifest:
        slot = _slot(tenant, video, recipe_digest)
        return self._change(slot, lambda old: steps.seal(_known(old, slot), epoch, row))

    def revise(self, tenant: str, video: str, recipe_digest: str, epoch: int, rows: Sequence[ChunkRow]) -> Manifest:
        slot = _slot(tenant, video, recipe_digest)
        return self._change(slot, lambda old: steps.revise(_known(old, slot), epoch, rows))

    def decay(self, tenant: str, video: str, recipe_digest: str) -> Manifest:
        slot = _slot(tenant, video, recipe_digest)

        def step(old: Manifest | None) -> Manifest:
            return steps.decay(_known(old, slot), self._shelf.next_epoch(tenant))

        return self._change(slot, step, remembered=False, made=False)

    def finish(
        self, tenant: str, video: str, recipe_digest: str, epoch: int, info: VideoInfo | None = None
    ) -> Manifest:
        slot = _slot(tenant, video, recipe_digest)
        return self._change(slot, lambda old: steps.finish(_known(old, slot), epoch, info))

    def delete(self, tenant: str, video: str, recipe_digest: str | None = None) -> bool:
        slot = _slot(tenant, video, "any" if recipe_digest is None else recipe_digest)
        dropped = self._shelf.drop(tenant, video, recipe_digest)
        with self._lock:
            for seen in [seen for seen in self._seen if seen[:2] == slot[:2] and recipe_digest in (None, seen.recipe)]:
                del self._seen[seen]
        return dropped

    # --- reading ----------------------------------------------------------------------------------------------------

    def manifest(self, tenant: str, video: str, recipe_digest: str | None = None) -> Manifest:
        slot = _slot(tenant, video, "any" if recipe_digest is None else recipe_digest)
        if recipe_digest is None:
            heads = [decode_head(head).manifest for head in self._shelf.heads(tenant, video)]
            if not heads:
                raise _unknown(slot)
            newest = max(heads, key=lambda m: (m.status.was_ready, m.epoch))
            slot = Slot(tenant, video, newest.recipe.digest)
        seen = self._read(slot)
        return _known(seen.manifest if seen else None, slot)

    def tenants(self) -> list[str]:
        return sorted(self._shelf.tenants())

    def epoch(self, tenant: str) -> int:
        return self._shelf.epoch(check_name("tenant", tenant))

    def videos(self, tenant: str) -> list[VideoRecord]:
        records = []
        for raw in self._shelf.heads(check_name("tenant", tenant)):
            head = decode_head(raw)
            manifest = head.manifest
            records.append(
                VideoRecord(
                    tenant=manifest.tenant,
                    video=manifest.video,
                    recipe=manifest.recipe,
                    epoch=manifest.epoch,
                    revision=manifest.revision,
                    status=manifest.status,
                    info=manifest.info,
                    source=manifest.source,
                    made_s=manifest.made_s,
                    chunks=head.chunks,
                    covered=head.covered,
                    stored_bytes=head.stored_bytes,
                    fine_bytes=head.fine_bytes,
                )
            )
        return sorted(records, key=lambda record: (record.video, record.epoch))

    # --- content ----------------------------------------------------------------------------------------------------

    def bind(self, tenant: str, content: str, video: str) -> str:
        return self._shelf.bind(*_binding(tenant, content), check_name("video", video))

    def find(self, tenant: str, content: str) -> str | None:
        return self._shelf.find(*_binding(tenant, content))

    # --- life -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self._shelf.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- machinery --------------------------------------------------------------------------------------------------

    def _change(
        self,
        slot: Slot,
        step: Callable[[Manifest | None], Manifest],
        *,
        remembered: bool = True,
        made: bool = True,
    ) -> Manifest:
        """Reads, steps and swaps until it holds; at first with the manifest as last seen, if ``remembered``.

        ``made``: whether what the step changes makes the index new.
        """
        seen = self._recall(slot) if remembered else None
        current = False
        for _ in range(_ATTEMPTS):
            if seen is None:
                seen, current = self._read(slot), True
            try:
                new = step(seen.manifest if seen else None)
            except (StateError, UnknownVideo):
                if current:
                    raise
                new = None
            if new is not None and seen is not None and new is seen.manifest:
                if current:
                    return new
            elif new is not None:
                new = replace(new, made_s=self._clock()) if made else new
                born = seen.born if seen else new.epoch
                head = encode_head(new, born)
                records = [encode_row(row) for row in _changed(seen.manifest if seen else None, new)]
                cursor = self._shelf.swap(slot, seen.head if seen else None, head, records)
                if cursor is not None:
                    return self._remember(slot, _Seen(head, born, cursor, new)).manifest
            seen, current = None, False
        raise ManifestConflict(f"video {slot.video} changes faster than it can be written to: are two jobs fighting?")

    def _read(self, slot: Slot) -> _Seen | None:
        """The manifest as it is now; of its rows only the new ones travel."""
        if seen := self._recall(slot):
            try:
                if snapshot := self._shelf.read(slot, seen.cursor):
                    if snapshot.head == seen.head:
                        return seen
                    if decode_head(snapshot.head).born == seen.born:
                        return self._merge(slot, snapshot, seen.manifest.chunks)
            except ManifestCorrupt:
                pass  # perhaps only because another log stands where the cursor was: read it whole
            self._forget(slot)
        whole = self._shelf.read(slot)
        return self._merge(slot, whole, ()) if whole else None

    def _merge(self, slot: Slot, snapshot: Snapshot, rows: tuple[ChunkRow, ...]) -> _Seen:
        manifest, born, chunks, *_ = decode_head(snapshot.head)
        if (manifest.tenant, manifest.video, manifest.recipe.digest) != slot:
            raise ManifestCorrupt(
                f"the manifest kept for {'/'.join(slot)} is another one's: delete the video and index it again"
            )
        rows = merge_rows(rows, snapshot.records)
        if len(rows) != chunks:
            raise ManifestCorrupt(
                f"video {slot.video} has {len(rows)} of {chunks} manifest rows: delete it and index it again"
            )
        seen = _Seen(snapshot.head, born, snapshot.cursor, replace(manifest, chunks=rows))
        return self._remember(slot, seen)

    def _recall(self, slot: Slot) -> _Seen | None:
        with self._lock:
            return self._seen.get(slot)

    def _remember(self, slot: Slot, seen: _Seen) -> _Seen:
        with self._lock:
            self._seen[slot] = seen
            self._seen.move_to_end(slot)
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        return seen

    def _forget(self, slot: Slot) -> None:
        with self._lock:
            self._seen.pop(slot, None)


def _changed(old: Manifest | None, new: Manifest) -> list[ChunkRow]:
    """Rows that are not the very rows they were: steps keep those they do not change."""
    before = old.chunks if old else ()
    return [row for at, row in enumerate(new.chunks) if at >= len(before) or row is not before[at]]


def _slot(tenant: str, video: str, recipe_digest: str) -> Slot:
    return Slot(check_name("tenant", tenant), check_name("video", video), check_name("recipe", recipe_digest))


def _binding(tenant: str, content: str) -> tuple[str, str]:
    return check_name("tenant", tenant), check_name("content digest", content)


def _known(manifest: Manifest | None, slot: Slot) -> Manifest:
    if manifest is None:
        raise _unknown(slot)
    return manifest


def _unknown(slot: Slot) -> UnknownVideo:
    return UnknownVideo(f"no index of video {slot.video} is here: list the videos, or index it first")
