"""Manifests as bytes: a *head* (everything but the rows) and one record a row, each with its own checksum.

Kept apart, sealing a chunk writes one record and the small head, however long the video is. A later record of the
same chunk replaces an earlier one. msgpack, never a pickle; whatever the bytes are, the result is a value or
ManifestCorrupt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any, Final, NamedTuple, TypeVar

import msgpack
import xxhash

from x2l_cluster.errors import ManifestCorrupt, X2LError
from x2l_cluster.types import (
    BlockRef,
    ChunkRow,
    IndexStatus,
    Kind,
    Manifest,
    Packed,
    Recipe,
    SourceRef,
    Span,
    VideoInfo,
    check_name,
)

_VERSION: Final = 4
MAX_RECORD_BYTES: Final = 1 << 20
_MAX_STRIPES: Final = 1 << 16
"""Of one block: 48 GiB, far above any; a damaged row must not have readers make keys without end."""
_SIMPLE: Final = {"str": str, "int": int, "float": float, "None": type(None)}
_T = TypeVar("_T")


class Head(NamedTuple):
    """A manifest without its rows: how many it has, what they cover, the bytes they name, fine ones among them,
    and the epoch it was first begun under.

    ``born`` tells a manifest from one of the same name that was deleted before.
    """

    manifest: Manifest
    born: int
    chunks: int
    covered: Span
    stored_bytes: int
    fine_bytes: int


def encode_head(manifest: Manifest, born: int) -> bytes:
    """Everything but the rows; of these their number and span. Any change of the manifest changes these bytes."""
    return seal_record(
        {
            "v": _VERSION,
            "tenant": manifest.tenant,
            "video": manifest.video,
            "recipe": manifest.recipe.to_dict(),
            "digest": manifest.recipe.digest,
            "born": born,
            "epoch": manifest.epoch,
            "revision": manifest.revision,
            "status": manifest.status.value,
            "info": asdict(manifest.info),
            "source": asdict(manifest.source) if manifest.source else None,
            "chunks": len(manifest.chunks),
            "tail": manifest.tail,
            "covered": [manifest.span.start_s, manifest.span.end_s],
            "made": manifest.made_s,
            "bytes": manifest.stored_bytes,
            "fine": manifest.size_bytes(Kind.L),
        }
    )


def encode_row(row: ChunkRow) -> bytes:
    """One row; equal rows give equal bytes."""
    return seal_record(
        {
            "i": row.index,
            "span": [row.span.start_s, row.span.end_s],
            "frames": row.frames,
            "pos": [row.position_start, row.position_end],
            "raw": row.raw_entries,
            "blocks": [_plain(ref) for _, ref in sorted(row.blocks.items())],
            "prints": row.prints,
        }
    )


def decode_head(data: bytes) -> Head:
    """Raises ManifestCorrupt."""
    try:
        head = open_record(data)
        if _int(head["v"]) != _VERSION:
            raise ManifestCorrupt(f"manifest of format version {head['v']}, this program reads {_VERSION}: index again")
        recipe = Recipe.from_dict(head["recipe"])
        if recipe.digest != head["digest"]:
            raise ValueError("the recipe does not match its digest")
        source = head["source"]
        manifest = Manifest(
            tenant=check_name("tenant", head["tenant"]),
            video=check_name("video", head["video"]),
            recipe=recipe,
            epoch=_int(head["epoch"]),
            revision=_int(head["revision"]),
            status=IndexStatus(head["status"]),
            info=_record(VideoInfo, head["info"]),
            source=None if source is None else _record(SourceRef, source),
            made_s=_moment(head["made"]),
            tail=_int(head["tail"]),
        )
        if manifest.tail > _int(head["chunks"]):
            raise ValueError("the tail is longer than the video")
        start_s, end_s = head["covered"]
        covered = Span(start_s=_float(start_s), end_s=_float(end_s))
        born, chunks = _int(head["born"]), _int(head["chunks"])
        return Head(manifest, born, chunks, covered, _int(head["bytes"]), _int(head["fine"]))
    except (LookupError, TypeError, ValueError, AttributeError, X2LError) as error:
        raise _corrupt("head of a manifest", error) from error


def decode_row(data: bytes) -> ChunkRow:
    """Raises ManifestCorrupt."""
    try:
        row = open_record(data)
        (start_s, end_s), (first, last) = row["span"], row["pos"]
        refs = [_ref(fields) for fields in row["blocks"]]
        return ChunkRow(
            index=_int(row["i"]),
            span=Span(start_s=_float(start_s), end_s=_float(end_s)),
            frames=_int(row["frames"]),
            position_start=_float(first),
            position_end=_float(last),
            raw_entries=_int(row["raw"]),
            blocks={ref.kind: ref for ref in refs},
            prints=_prints(row["prints"], frames=row["frames"]),
        )
    except (LookupError, TypeError, ValueError, X2LError) as error:
        raise _corrupt("row of a manifest", error) from error


def merge_rows(rows: tuple[ChunkRow, ...], records: Iterable[bytes]) -> tuple[ChunkRow, ...]:
    """``rows`` with later records applied in order. Raises ManifestCorrupt for a gap."""
    merged = list(rows)
    for record in records:
        row = decode_row(record)
        if row.index > len(merged):
            raise ManifestCorrupt(f"a manifest has no row {len(merged)}, but row {row.index}: index the video again")
        merged[row.index : row.index + 1] = [row]
    return tuple(merged)


def _plain(ref: BlockRef) -> list[Any]:
    packed = ref.packed and [ref.packed.epoch, ref.packed.chunk, ref.packed.offset]
    return [ref.kind, ref.epoch, ref.size_bytes, ref.checksum, ref.entries, ref.stripes, packed]


def _ref(fields: Any) -> BlockRef:
    kind, epoch, size, checksum, entries, stripes, packed = fields
    if not 1 <= _int(stripes) <= _MAX_STRIPES:
        raise ValueError(f"nothing is stored as {stripes} stripes")
    place = None
    if packed is not None:
        segment, chunk, offset = packed
        place = Packed(epoch=_int(segment), chunk=_int(chunk), offset=_int(offset))
        if stripes > 1:
            raise ValueError("what is packed has no stripes")
    return BlockRef(
        kind=check_name("kind", kind),
        epoch=_int(epoch),
        size_bytes=_int(size),
        checksum=_text(checksum),
        entries=_int(entries),
        stripes=stripes,
        packed=place,
    )


def seal_record(value: Mapping[str, Any]) -> bytes:
    """Plain data as bytes that tell when they are damaged."""
    body: bytes = msgpack.packb(value)
    return xxhash.xxh3_64_digest(body) + body


def open_record(data: bytes) -> Any:
    """What was sealed. Raises ValueError."""
    body = data[8:]
    if len(data) > MAX_RECORD_BYTES or xxhash.xxh3_64_digest(body) != data[:8]:
        raise ValueError("the checksum does not fit")
    return msgpack.unpackb(body, max_ext_len=0, max_array_len=1024, max_map_len=1024)


def _record(kind: type[_T], value: Any) -> _T:
    """A flat dataclass from a map, its fields of the declared simple types."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    types = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]
    for name, item in value.items():
        allowed = [_SIMPLE[part] for part in types[name].split(" | ")]
        if type(item) not in allowed and not (type(item) is int and float in allowed):
            raise TypeError(f"{kind.__name__}.{name} cannot be {item!r}")
    return kind(**value)


def _int(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is no count")
    return value


def _float(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _moment(value: Any) -> float:
    if not 0 <= _float(value) < 1e12:
        raise ValueError(f"{value!r} is no moment")
    return float(value)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"{value!r} is no text")
    return value


def _prints(value: Any, *, frames: int) -> bytes:
    if type(value) is not bytes or len(value) not in (0, 8 * frames):
        raise TypeError(f"{value!r} are no prints of {frames} frames")
    return value


def _corrupt(what: str, error: Exception) -> ManifestCorrupt:
    if isinstance(error, ManifestCorrupt):
        return error
    return ManifestCorrupt(f"the {what} is damaged ({error!r}): delete the video and index it again")
