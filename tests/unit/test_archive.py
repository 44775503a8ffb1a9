"""Exported indexes as bytes: they come back equal, and whatever else the bytes are is told, and does no more."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

import msgpack
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.blocks import raw_block
from tests.tiny import qwen3_vl
from x2l_cluster.engine.transfer import read_index
from x2l_cluster.errors import BadArchive, ModelMismatch
from x2l_cluster.kv.blob import pack, rekeyed
from x2l_cluster.kv.codec import decode_block, encode, encode_stripe, ref_of, ref_of_all
from x2l_cluster.kv.stripes import split
from x2l_cluster.state.codec import encode_head, encode_row, seal_record
from x2l_cluster.stores.archive import MAGIC, ArchiveReader, ArchiveWriter
from x2l_cluster.types import (
    LAYOUT_VERSION,
    BlockKey,
    ChunkRow,
    IndexStatus,
    Kind,
    Manifest,
    Packed,
    SourceRef,
    Span,
    VideoInfo,
)

LM = qwen3_vl(0)
SHAPE: dict[str, Any] = {"layers": LM.spec.layers, "heads": LM.spec.kv_heads, "dim": LM.spec.head_dim}
SOURCE = SourceRef(id="0" * 63 + "a", name="film.mp4", size_bytes=10)
INFO = VideoInfo(duration_s=16.0, width=64, height=48, fps=2.0)
Frames = list[tuple[str, bytes]]


def made(chunks: int = 2, **changes: Any) -> tuple[Manifest, list[list[bytes]]]:
    """A manifest and the blobs of each of its rows: fine in stripes, coarse and a score index in one."""
    manifest = Manifest(
        tenant="ada",
        video="film",
        recipe=LM.recipe(**changes),
        epoch=3,
        revision=5,
        status=IndexStatus.READY,
        info=INFO,
        source=SOURCE,
    )
    rows, blobs = [], []
    for index in range(chunks):
        key = BlockKey(tenant="ada", video="film", recipe=manifest.recipe.digest, epoch=3, kind="h", chunk=index)
        coarse = encode(raw_block(groups=1, rows=1, cols=1, seed=index, **SHAPE), key)
        fine = [
            encode_stripe(stripe, replace(key, kind="l")) for stripe in split(raw_block(seed=index, **SHAPE), 8 << 10)
        ]
        score = pack({"keys": torch.zeros(2, 3)}, {"heads": [[0, 1]]}, replace(key, kind="x-1f"))
        assert len(fine) > 1
        refs = [ref_of(coarse), ref_of_all([ref_of(blob) for blob in fine]), ref_of(score)]
        rows.append(
            ChunkRow(
                index=index,
                span=Span(start_s=index * 8.0, end_s=index * 8.0 + 8),
                frames=16,
                position_start=index * 40.0,
                position_end=index * 40.0 + 40,
                raw_entries=200,
                blocks={ref.kind: ref for ref in refs},
            )
        )
        blobs.append([bytes(blob) for blob in (coarse, *fine, score)])
    return replace(manifest, chunks=tuple(rows)), blobs


def written(manifest: Manifest, blobs: Sequence[Sequence[bytes]]) -> bytes:
    file = BytesIO()
    writer = ArchiveWriter(file, manifest)
    for row, theirs in zip(manifest.chunks, blobs, strict=True):
        writer.row(row, theirs)
    writer.end()
    return file.getvalue()


MANIFEST, BLOBS = made()
WHOLE = written(MANIFEST, BLOBS)


def frames_of(data: bytes) -> Frames:
    return [(name, payload) for _, name, payload, _ in msgpack.Unpacker(BytesIO(data[len(MAGIC) :]))]


def forged(frames: Frames) -> bytes:
    """Frames by somebody who knows how sums are made."""
    out, told = bytearray(MAGIC), b""
    for number, (name, payload) in enumerate(frames):
        digest = xxhash.xxh3_64(told)
        digest.update(f"{number}/{name}/".encode(errors="replace"))
        digest.update(payload)
        told = digest.digest()
        out += msgpack.packb([number, name, payload, told])
    return bytes(out)


FRAMES = frames_of(WHOLE)


def read(data: bytes) -> Manifest:
    return read_index(BytesIO(data), LM)


def test_an_index_comes_back_equal() -> None:
    assert read(WHOLE) == replace(MANIFEST, made_s=0.0)
    assert forged(FRAMES) == WHOLE
    reader = ArchiveReader(BytesIO(WHOLE))
    for row, theirs in zip(reader.rows(), BLOBS, strict=True):
        assert [reader.blob() for _ in theirs] == theirs
        assert row == MANIFEST.chunks[row.index]


def test_a_blob_under_another_key_is_what_it_would_have_been_there() -> None:
    block = raw_block(**SHAPE)
    key = BlockKey(tenant="ada", video="film", recipe="r", epoch=3, kind="l", chunk=0)
    other = replace(key, tenant="a-tenant-of-a-longer-name" * 4, video="v", epoch=70000)
    moved = rekeyed(encode(block, key), other)
    assert moved == encode(block, other)
    decode_block([moved], other, ref_of(moved))


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, len(WHOLE) - 1), bit=st.integers(0, 7))
def test_every_flip_is_found(at: int, bit: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[at] ^= 1 << bit
    with pytest.raises((BadArchive, ModelMismatch)):
        read(bytes(damaged))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_every_cut_and_every_insertion_is_found(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(WHOLE)))
    stop = data.draw(st.integers(start, len(WHOLE)))
    between = data.draw(st.binary(max_size=40))
    damaged = WHOLE[:start] + between + WHOLE[stop:]
    if damaged != WHOLE:
        with pytest.raises(BadArchive):
            read(damaged)


@settings(max_examples=100, deadline=None)
@given(junk=st.binary(max_size=300), behind=st.sampled_from([0, len(MAGIC), len(MAGIC) + 400]))
def test_junk_is_told(junk: bytes, behind: int) -> None:
    with pytest.raises(BadArchive):
        read(WHOLE[:behind] + junk)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_frames_of_somebody_who_makes_good_sums_are_refused_or_sound(data: st.DataObject) -> None:
    frames = list(FRAMES)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(frames) - 1))
        match data.draw(st.sampled_from(["drop", "twice", "swap", "name", "payload", "flip", "field", "other"])):
            case "drop" if len(frames) > 1:
                del frames[at]
            case "twice":
                frames.insert(at, frames[at])
            case "swap":
                to = data.draw(st.integers(0, len(frames) - 1))
                frames[at], frames[to] = frames[to], frames[at]
            case "name":
                frames[at] = (data.draw(st.sampled_from(["index", "row", "blob", "end", "x"])), frames[at][1])
            case "payload":
                frames[at] = (frames[at][0], data.draw(st.binary(max_size=64)))
            case "flip":
                hurt = bytearray(frames[at][1] or b"x")
                hurt[data.draw(st.integers(0, len(hurt) - 1))] ^= 1 << data.draw(st.integers(0, 7))
                frames[at] = (frames[at][0], bytes(hurt))
            case "field" if frames[at][0] in ("index", "row"):
                frames[at] = (frames[at][0], another(frames[at][1], data))
            case "other":
                frames[at] = frames[data.draw(st.integers(0, len(frames) - 1))]
            case _:
                pass
    try:
        found = read(forged(frames))
    except (BadArchive, ModelMismatch):
        return
    assert [row.index for row in found.chunks] == list(range(len(found.chunks))) != []
    for row in found.chunks:
        assert Kind.H in row.blocks and not any(ref.packed for ref in row.blocks.values())
        theirs = BLOBS[row.index]
        assert ref_of(theirs[0]) == replace(row.blocks["h"], packed=None)


def another(record: bytes, data: st.DataObject) -> bytes:
    """A record with a field changed, its own checksum made good."""
    try:
        fields = msgpack.unpackb(record[8:])
        fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(PLAIN)
        return seal_record(fields)
    except Exception:  # noqa: BLE001 - it was changed before
        return record


@pytest.mark.parametrize(
    "lengths",
    [
        b"\xdd\xff\xff\xff\xff",  # an array of 4 milliards
        b"\x94\x00\xa5index\xc6\xff\xff\xff\xff",  # a payload of 4 GiB
        b"\x94\x00\xa5index\xc6\x03\xff\xff\xff",  # one of 64 MiB, of which nothing is there
        b"\x94\x00\xdb\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\x91" * 100_000,
    ],
)
def test_no_length_is_believed(lengths: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadArchive):
            read(MAGIC + lengths + bytes(1000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_of_a_large_file_never_more_than_a_few_blobs_are_in_memory() -> None:
    manifest, _ = made(chunks=16)
    large = raw_block(groups=4, rows=24, cols=24, **SHAPE)
    file = BytesIO()
    writer = ArchiveWriter(file, manifest)
    for index, row in enumerate(manifest.chunks):
        key = manifest.key(row.blocks["h"], index)
        blobs = [bytes(encode_stripe(stripe, key)) for stripe in split(large)]
        assert len(blobs) > 1
        writer.row(replace(row, blocks={"h": ref_of_all([ref_of(blob) for blob in blobs])}), blobs)
    writer.end()
    assert file.tell() > 16 << 20
    file.seek(0)
    tracemalloc.start()
    try:
        found = read_index(file, LM)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found.chunks) == 16 and peak < 8 << 20


def test_another_model_another_layout_another_shape_are_refused() -> None:
    with pytest.raises(ModelMismatch, match="tiny0"):
        read_index(BytesIO(WHOLE), qwen3_vl(1))
    with pytest.raises(BadArchive, match=f"layout {LAYOUT_VERSION + 1}, this program reads {LAYOUT_VERSION}"):
        read(written(*made(layout=LAYOUT_VERSION + 1)))
    manifest, _ = made(chunks=1)
    key = manifest.key(manifest.chunks[0].blocks["h"], 0)
    for shape in ({"layers": 1}, {"heads": 1}, {"dim": 8}):
        wrong = bytes(encode(raw_block(groups=1, **(SHAPE | shape)), key))
        row = replace(manifest.chunks[0], blocks={"h": ref_of(wrong)})
        with pytest.raises(BadArchive, match="which is no block of"):
            read(written(replace(manifest, chunks=(row,)), [[wrong]]))


def test_what_only_looks_like_an_index_is_refused() -> None:
    row, ref = MANIFEST.chunks[0], MANIFEST.chunks[0].blocks["h"]
    _, *rest = FRAMES
    heads = (
        replace(MANIFEST, chunks=()),
        replace(MANIFEST, chunks=(), status=IndexStatus.INDEXING),
        replace(MANIFEST, chunks=(), tail=1),
        replace(MANIFEST, chunks=(), source=replace(SOURCE, id="../../etc/passwd".replace("/", "."))),
        replace(MANIFEST, chunks=(), info=replace(INFO, duration_s=float("nan"))),
    )
    assert read(forged([("index", encode_head(heads[0], born=0)), *rest])).chunks == MANIFEST.chunks
    for head in heads[1:]:
        with pytest.raises(BadArchive):
            read(forged([("index", encode_head(head, born=0)), *rest]))
    for wrong in (
        replace(row, blocks={}),
        replace(row, blocks={"x-1f": row.blocks["x-1f"]}),
        replace(row, blocks={"h": replace(ref, packed=Packed(epoch=1, chunk=0, offset=64))}),
        replace(row, blocks={"h": ref, "h-seg": replace(ref, kind="h-seg"), "zzz": replace(ref, kind="zzz")}),
        replace(row, position_start=50.0, position_end=40.0),
        replace(row, position_end=float("inf")),
        replace(row, index=1),
    ):
        frames = [FRAMES[0], ("row", encode_row(wrong)), ("blob", BLOBS[0][0]), ("end", b"")]
        with pytest.raises(BadArchive):
            read(forged(frames))
    with pytest.raises(BadArchive, match="no rows"):
        read(forged([FRAMES[0], ("end", b"")]))
    for more in (b"\x01", b"\xc4", b"\x94", bytes(1 << 20)):
        with pytest.raises(BadArchive, match="behind the end"):
            read(WHOLE + more)
