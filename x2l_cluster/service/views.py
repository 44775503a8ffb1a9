"""Manifests as those who ask see them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from x2l_cluster.messages import Chunk, Video
from x2l_cluster.state.base import VideoRecord
from x2l_cluster.types import ChunkRow, Kind, Manifest


def video_of(manifest: Manifest | VideoRecord) -> Video:
    if isinstance(manifest, VideoRecord):
        covered, chunks = manifest.covered, manifest.chunks
    else:
        covered, chunks = manifest.span, len(manifest.chunks)
    return Video(
        id=manifest.video,
        status=manifest.status,
        name=manifest.source.name if manifest.source else None,
        duration_s=manifest.info.duration_s,
        width=manifest.info.width,
        height=manifest.info.height,
        covered=covered,
        chunks=chunks,
        recipe=manifest.recipe.digest,
        revision=manifest.revision,
        partial=manifest.info.partial,
        source_bytes=manifest.source.size_bytes if manifest.source else None,
        stored_bytes=manifest.stored_bytes,
    )


def newest(records: Iterable[VideoRecord], weights: str | None) -> list[VideoRecord]:
    """One record a video: the index of this model if there is one, rather finished, rather new."""

    def worth(record: VideoRecord) -> tuple[bool, bool, int]:
        return record.recipe.weights == weights, record.status.was_ready, record.epoch

    by_video = groupby(sorted(records, key=lambda record: record.video), key=lambda record: record.video)
    return [max(several, key=worth) for _, several in by_video]


def chunk_of(row: ChunkRow) -> Chunk:
    sizes = {kind: ref.size_bytes for kind, ref in row.blocks.items()}
    return Chunk(
        index=row.index,
        span=row.span,
        frames=row.frames,
        fine_bytes=sizes.pop(Kind.L, 0),
        coarse_bytes=sizes.pop(Kind.H, 0),
        score_bytes=sum(sizes.values()),
        full_entries=row.raw_entries,
    )
