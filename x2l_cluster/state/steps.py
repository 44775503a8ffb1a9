"""What each step makes of a manifest: the rules of publication, as pure functions.

::

    ─ begin ─▶ INDEXING ── finish ─▶ READY ─── grow ──▶ GROWING
               seal, revise          revise, decay      seal, revise
                                       ▲─── finish ────────┘

``begin`` of an index that is there keeps its rows and whether it is READY, under a new epoch: whoever works on it just
now is overtaken. So do ``decay``, which takes L out of every row, and ``grow``, after which there is more of the video:
its rows stay, but those of the *tail* are replaced as they are sealed again. Every other step needs the current epoch.
A step that changes nothing returns the very manifest it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from x2l_cluster.errors import ManifestConflict, StaleEpoch
from x2l_cluster.types import BlockRef, ChunkRow, IndexStatus, Kind, Manifest, Recipe, SourceRef, VideoInfo


def begin(
    old: Manifest | None,
    *,
    tenant: str,
    video: str,
    recipe: Recipe,
    epoch: int,
    info: VideoInfo,
    source: SourceRef | None,
) -> Manifest:
    if old is None:
        return Manifest(tenant=tenant, video=video, recipe=recipe, epoch=epoch, revision=1, info=info, source=source)
    _check_newer(old, epoch)
    if old.chunks and source and old.source and source.id != old.source.id:
        raise ManifestConflict(
            f"video {video} has {len(old.chunks)} chunks of source {old.source.id}, not of {source.id}: "
            "delete it first, or use another id"
        )
    return replace(
        old,
        epoch=epoch,
        revision=old.revision + 1,
        info=old.info if old.status is IndexStatus.READY else info,
        source=source or old.source,
    )


def grow(old: Manifest, epoch: int, *, revision: int, kept: int, info: VideoInfo, source: SourceRef) -> Manifest:
    _check_newer(old, epoch)
    if old.revision != revision:
        raise StaleEpoch(f"video {old.video} has changed while its new part was looked at: look again")
    if not 0 <= kept <= len(old.settled):
        raise ManifestConflict(f"video {old.video} has {len(old.settled)} chunks, {kept} of them cannot stay")
    return replace(
        old,
        epoch=epoch,
        revision=old.revision + 1,
        status=IndexStatus.GROWING if old.status.was_ready else old.status,
        info=info,
        source=source,
        tail=len(old.chunks) - kept,
    )


def seal(old: Manifest, epoch: int, row: ChunkRow) -> Manifest:
    _check_epoch(old, epoch)
    due = len(old.settled)
    if row.index < due:
        if old.chunks[row.index] == row:
            return old
        raise ManifestConflict(f"chunk {row.index} of video {old.video} is sealed with other blocks: go on after it")
    if old.status is IndexStatus.READY:
        raise ManifestConflict(f"the index of video {old.video} is finished, chunk {row.index} comes too late")
    if row.index > due:
        raise ManifestConflict(f"video {old.video}: chunk {due} comes next, not {row.index}")
    _check_blocks(old, row)
    as_before = old.tail and replace(row, span=old.chunks[due].span) == old.chunks[due]
    if not as_before and any(ref.epoch != epoch for ref in row.blocks.values()):
        raise ManifestConflict(f"chunk {row.index} of video {old.video} names blocks not written under epoch {epoch}")
    chunks = (*old.chunks[:due], row, *old.chunks[due + 1 :])
    return replace(old, revision=old.revision + 1, chunks=chunks, tail=max(0, old.tail - 1))


def revise(old: Manifest, epoch: int, rows: Sequence[ChunkRow]) -> Manifest:
    _check_epoch(old, epoch)
    chunks = list(old.chunks)
    for row in rows:
        if row.index >= len(chunks) or replace(row, blocks=chunks[row.index].blocks) != chunks[row.index]:
            raise ManifestConflict(
                f"chunk {row.index} of video {old.video} is not sealed with that span: read it again"
            )
        if row != chunks[row.index]:
            _check_blocks(old, row)
            chunks[row.index] = row
    return replace(old, revision=old.revision + 1, chunks=tuple(chunks)) if tuple(chunks) != old.chunks else old


def decay(old: Manifest, epoch: int) -> Manifest:
    if old.status is not IndexStatus.READY:
        raise ManifestConflict(f"video {old.video} is being indexed: wait until it is ready, or delete it")
    if not any(Kind.L in row.blocks for row in old.chunks):
        return old
    _check_newer(old, epoch)
    rows = (
        replace(row, blocks={kind: ref for kind, ref in row.blocks.items() if kind != Kind.L})
        if Kind.L in row.blocks
        else row
        for row in old.chunks
    )
    return replace(old, epoch=epoch, revision=old.revision + 1, chunks=tuple(rows))


def finish(old: Manifest, epoch: int, info: VideoInfo | None) -> Manifest:
    _check_epoch(old, epoch)
    if not old.chunks:
        raise ManifestConflict(f"nothing of video {old.video} is sealed: there is no index to finish")
    if old.status is IndexStatus.READY and info in (None, old.info):
        return old
    return replace(old, revision=old.revision + 1, status=IndexStatus.READY, info=info or old.info, tail=0)


def _check_newer(old: Manifest, epoch: int) -> None:
    if epoch <= old.epoch:
        raise ManifestConflict(
            f"video {old.video} was worked on under epoch {old.epoch}, but the counter stands at {epoch}: "
            "it was lost; restore it, or delete the video"
        )


def _check_epoch(old: Manifest, epoch: int) -> None:
    if epoch != old.epoch:
        raise StaleEpoch(f"video {old.video} is worked on under epoch {old.epoch}, not {epoch}: drop this work")


def _check_blocks(old: Manifest, row: ChunkRow) -> None:
    def impossible(ref: BlockRef) -> bool:
        return max(ref.epoch, ref.packed.epoch if ref.packed else 0) > old.epoch

    if not row.blocks or any(kind != ref.kind or impossible(ref) for kind, ref in row.blocks.items()):
        raise ManifestConflict(f"chunk {row.index} of video {old.video} names no blocks, or impossible ones")
