"""Manifests as bytes: they come back equal, and damage is ManifestCorrupt, whatever the damage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from x2l_cluster.errors import ManifestCorrupt
from x2l_cluster.state.codec import decode_head, decode_row, encode_head, encode_row, merge_rows
from x2l_cluster.types import BlockRef, ChunkRow, Manifest, Packed, Recipe, SourceRef, Span, VideoInfo

ROW = ChunkRow(
    index=0,
    span=Span(start_s=0.0, end_s=8.5),
    frames=16,
    position_start=0.0,
    position_end=40.5,
    raw_entries=200,
    blocks={
        "l": BlockRef(kind="l", epoch=1, size_bytes=9, checksum="ab", entries=5, stripes=108),
        "h": BlockRef(
            kind="h", epoch=1, size_bytes=9, checksum="ab", entries=5, packed=Packed(epoch=2, chunk=0, offset=64)
        ),
    },
)
MANIFEST = Manifest(
    tenant="ada",
    video="v1",
    recipe=Recipe(family="tiny", weights="w"),
    epoch=4,
    revision=7,
    info=VideoInfo(duration_s=8.5, width=1, height=2, fps=25.0),
    source=SourceRef(id="s", name="ü.mp4", size_bytes=3),
    made_s=1.5,
    chunks=(ROW,),
)
HEAD = encode_head(MANIFEST, born=2)
LINE = encode_row(ROW)


def sealed(value: Any) -> bytes:
    body = msgpack.packb(value)
    return xxhash.xxh3_64_digest(body) + body


def test_heads_and_rows_come_back_equal() -> None:
    head = decode_head(HEAD)
    assert replace(head.manifest, chunks=MANIFEST.chunks) == MANIFEST
    assert (head.born, head.chunks, head.covered) == (2, 1, ROW.span)
    assert (head.stored_bytes, head.fine_bytes) == (18, 9)
    assert decode_row(LINE) == ROW


def test_equal_rows_are_equal_bytes_whatever_the_order_of_their_blocks() -> None:
    ref = ROW.blocks["l"]
    h = replace(ref, kind="h")
    assert encode_row(replace(ROW, blocks={"l": ref, "h": h})) == encode_row(replace(ROW, blocks={"h": h, "l": ref}))


def test_later_records_replace_earlier_ones_and_gaps_are_found() -> None:
    second = replace(ROW, index=1)
    changed = replace(ROW, blocks={})
    assert merge_rows((), [LINE, encode_row(second), encode_row(changed)]) == (changed, second)
    assert merge_rows((ROW,), [encode_row(second)]) == (ROW, second)
    with pytest.raises(ManifestCorrupt, match="no row 1"):
        merge_rows((ROW,), [encode_row(replace(ROW, index=2))])


@pytest.mark.parametrize("data", [HEAD, LINE])
def test_every_flip_and_truncation_is_found(data: bytes) -> None:
    decode = decode_head if data is HEAD else decode_row
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << (at % 8)
        for hurt in (bytes(damaged), data[:at]):
            with pytest.raises(ManifestCorrupt):
                decode(hurt)


FIELDS = sorted(msgpack.unpackb(HEAD[8:]))
JUNK = (None, -1, "x", 1.5, [], {}, [1], b"\xff", True, {"a": 1}, [[]], float("nan"))


@pytest.mark.parametrize("field", [f for f in FIELDS if f != "source"])
def test_heads_with_nonsense_in_a_field(field: str) -> None:
    good = msgpack.unpackb(HEAD[8:])
    for junk in JUNK:
        if isinstance(junk, str) and field in ("tenant", "video"):
            continue
        if junk == 1.5 and field == "made":
            continue
        with pytest.raises(ManifestCorrupt):
            decode_head(sealed({**good, field: junk}))
    del good[field]
    with pytest.raises(ManifestCorrupt):
        decode_head(sealed(good))


@pytest.mark.parametrize("field", sorted(msgpack.unpackb(LINE[8:])))
def test_rows_with_nonsense_in_a_field(field: str) -> None:
    good = msgpack.unpackb(LINE[8:])
    for junk in JUNK:
        if field == "blocks" and junk in ([], {}):
            continue
        with pytest.raises(ManifestCorrupt):
            decode_row(sealed({**good, field: junk}))


def test_a_row_that_names_impossible_blobs_is_found() -> None:
    good = msgpack.unpackb(LINE[8:])
    whole = ["l", 1, 9, "ab", 5, 1, None]
    assert decode_row(sealed({**good, "blocks": [whole]})).blocks["l"].packed is None
    for wrong in (
        whole[:5],
        [*whole[:5], 0, None],
        [*whole[:5], -1, None],
        [*whole[:5], 1 << 40, None],
        [*whole[:5], 1.0, None],
        [*whole[:5], 1, [1, 2]],
        [*whole[:5], 1, [1, 2, -3]],
        [*whole[:5], 1, "abc"],
        [*whole[:5], 2, [1, 2, 3]],
    ):
        with pytest.raises(ManifestCorrupt):
            decode_row(sealed({**good, "blocks": [wrong]}))


def test_records_of_another_version_say_so() -> None:
    with pytest.raises(ManifestCorrupt, match="version 3"):
        decode_head(sealed({**msgpack.unpackb(HEAD[8:]), "v": 3}))


def test_a_recipe_that_does_not_match_its_digest_is_found() -> None:
    good = msgpack.unpackb(HEAD[8:])
    good["recipe"]["chunk_frames"] = 99
    with pytest.raises(ManifestCorrupt, match="digest"):
        decode_head(sealed(good))


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(PLAIN, st.sampled_from(FIELDS), st.binary(max_size=100))
def test_fuzz(value: Any, field: str, raw: bytes) -> None:
    head, row = msgpack.unpackb(HEAD[8:]), msgpack.unpackb(LINE[8:])
    for data in (
        raw,
        xxhash.xxh3_64_digest(raw) + raw,
        sealed(value),
        sealed({**head, field: value}),
        sealed({**head, "recipe": {**head["recipe"], field: value}}),
        sealed({**row, field: value}),
    ):
        for decode in (decode_head, decode_row):
            try:
                decode(data)
            except ManifestCorrupt:
                continue
