"""Blobs that are damaged, forged or somebody else's: always BlockCorrupt, never another error, never a wrong block."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.blocks import raw_block
from x2l_cluster.compress.quantise import quantise
from x2l_cluster.errors import BlockCorrupt
from x2l_cluster.kv.blob import Head
from x2l_cluster.kv.codec import decode, encode, pack, ref_of, unpack
from x2l_cluster.types import BlockKey, Quant

KEY = BlockKey(tenant="local", video="v1", recipe="abc", epoch=3, kind="l", chunk=7)
SMALL = bytes(encode(raw_block(groups=1, rows=1, cols=1, layers=1, heads=1, dim=2), KEY))
IDENTITY = ["local", "v1", "abc", 3, "l", 7, 0]


def forge(identity: Any, description: Any, body: bytes = b"", *, raw: bool = False) -> bytes:
    """A blob with checksums that fit, whatever it says; ``raw``: the description is bytes already."""

    def fill(part: bytes) -> bytes:
        return part.ljust(-(-len(part) // 64) * 64, b"\0")

    header = fill(msgpack.packb(identity))
    about = fill(description if raw else msgpack.packb(description))
    payload = about + fill(body)
    front = struct.pack(
        "<8sIIIIQQ16x", b"x2l-blob", 1, len(header), len(about), 0, len(payload), xxhash.xxh3_64_intdigest(payload)
    )
    return front + struct.pack("<Q", xxhash.xxh3_64_intdigest(front + header + about)) + header + payload


def test_the_forge_makes_what_the_codec_reads() -> None:
    tensors, meta = unpack(forge(IDENTITY, [[["x", "uint8", [3]]], {"a": 1}], b"abc"), KEY)
    assert tensors["x"].tolist() == [97, 98, 99]
    assert meta == {"a": 1}


def test_every_truncation_is_found() -> None:
    for size in range(len(SMALL)):
        with pytest.raises(BlockCorrupt):
            decode(SMALL[:size])
    with pytest.raises(BlockCorrupt):
        decode(SMALL + b"\0" * 64)


def test_every_flipped_bit_is_found() -> None:
    for at in range(len(SMALL)):
        blob = bytearray(SMALL)
        blob[at] ^= 1 << (at % 8)
        with pytest.raises(BlockCorrupt):
            decode(blob)


def test_unverified_reading_still_checks_the_head() -> None:
    for at in range(Head.read(SMALL).body_at):
        blob = bytearray(SMALL)
        blob[at] ^= 0x10
        with pytest.raises(BlockCorrupt):
            decode(blob, verify=False)


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "other"},
        {"video": "v2"},
        {"recipe": "abd"},
        {"epoch": 4},
        {"kind": "h"},
        {"chunk": 8},
        {"stripe": 1},
    ],
)
def test_another_blocks_blob_is_not_taken(change: dict[str, Any]) -> None:
    with pytest.raises(BlockCorrupt, match="asked for"):
        decode(SMALL, replace(KEY, **change))


@pytest.mark.parametrize(
    "change", [{"epoch": 2}, {"size_bytes": 1}, {"checksum": "0" * 16}, {"entries": 1}, {"kind": "h"}]
)
def test_a_blob_the_manifest_does_not_know_is_not_taken(change: dict[str, Any]) -> None:
    with pytest.raises(BlockCorrupt, match="manifest"):
        decode(SMALL, KEY, replace(ref_of(SMALL), **change))


def test_magic_and_version_are_told_apart() -> None:
    with pytest.raises(BlockCorrupt, match="magic"):
        decode(b"y" + SMALL[1:])
    with pytest.raises(BlockCorrupt, match="version 2"):
        decode(SMALL[:8] + b"\x02" + SMALL[9:])


NESTED: Any = []
for _ in range(400):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    "identity",
    [
        [],
        IDENTITY[:-1],
        [*IDENTITY, 1],
        ["../x", *IDENTITY[1:]],
        [*IDENTITY[:3], -1, "l", 7, 0],
        [*IDENTITY[:3], True, "l", 7, 0],
        [*IDENTITY[:3], "3", "l", 7, 0],
        [*IDENTITY[:3], 3.0, "l", 7, 0],
        [None] * 7,
        {"tenant": "local"},
        "local",
        7,
        None,
        NESTED,
    ],
)
def test_headers_that_name_no_key(identity: Any) -> None:
    with pytest.raises(BlockCorrupt):
        unpack(forge(identity, [[], {}]))


@pytest.mark.parametrize(
    "table",
    [
        [["x", "uint8", [1 << 60]]],
        [["x", "uint8", [1 << 30, 1 << 30, 0]]],
        [["x", "uint8", [1 << 63, 0]]],
        [["x", "uint8", [-1]]],
        [["x", "uint8", [-1, -3]]],
        [["x", "uint8", [3.0]]],
        [["x", "uint8", [True]]],
        [["x", "uint8", 3]],
        [["x", "uint8", [1] * 9]],
        [["x", "uint8", [65]]],
        [["x", "uint8", [3]], ["y", "uint8", [1]]],
        [["x", "uint8", [3]], ["x", "uint8", [0]]],
        [["x", "float64", [0]]],
        [["x", "object", [3]]],
        [["x", ["uint8"], [3]]],
        [[3, "uint8", [3]]],
        [["x", "uint8"]],
        [],
        {},
        {"x": 1},
        "xyz",
        None,
        3,
        NESTED,
        [["x", "uint8", [0]]] * 1025,
    ],
)
def test_tables_that_lie(table: Any) -> None:
    with pytest.raises(BlockCorrupt):
        unpack(forge(IDENTITY, [table, {}], b"abc"))


@pytest.mark.parametrize(
    "description",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xdc\x04\x00" * 3000,
        b"\x91" * 100_000,
        b"\x92\x90\xc7\x01\x05a",
        b"\x92\x90\x81\x90\x01",
        b"\x92\x90\x81\xa1\xff\x01",
        b"\x92\x90\x80more",
        b"\x92\x90\x90",
        msgpack.packb([[], {}, 1]),
    ],
)
def test_descriptions_that_are_no_description(description: bytes) -> None:
    with pytest.raises(BlockCorrupt):
        unpack(forge(IDENTITY, description, raw=True))


def test_lengths_that_claim_much_are_refused_before_anything_is_taken() -> None:
    for header, about, payload in ((1 << 31, 0, 0), (0, 1 << 31, 1 << 31), (64, 64, 1 << 62), (64, 1 << 20, 1 << 21)):
        blob = struct.pack("<8sIIIIQQ16xQ", b"x2l-blob", 1, header, about, 0, payload, 0, 0)
        with pytest.raises(BlockCorrupt):
            unpack(blob)


def _block_parts() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors, meta = unpack(encode(quantise(raw_block(groups=2, dim=16), Quant.INT4, "float16"), KEY))
    return {name: tensor.clone() for name, tensor in tensors.items()}, meta


Break = Callable[[dict[str, torch.Tensor], dict[str, Any]], object]

BREAKS: dict[str, Break] = {
    "gap between runs": lambda t, m: t["runs"][1].__setitem__(1, 4),
    "run out of bounds": lambda t, m: t["runs"][-1].__setitem__(2, 1 << 30),
    "empty run": lambda t, m: t["runs"][0].__setitem__(2, 0),
    "negative group": lambda t, m: t["runs"][0].__setitem__(3, -1),
    "negative grid": lambda t, m: t["runs"][2].__setitem__(4, -4),
    "no such role": lambda t, m: t["runs"][0].__setitem__(0, 9),
    "grid too small": lambda t, m: t["runs"][2].__setitem__(4, 1),
    "runs end early": lambda t, m: t.update(runs=t["runs"][:-1].clone()),
    "more runs than entries": lambda t, m: t.update(runs=torch.zeros(1000, 6, dtype=torch.int32)),
    "runs of five numbers": lambda t, m: t.update(runs=t["runs"][:, :5].clone()),
    "no counts": lambda t, m: t.pop("counts"),
    "counts of floats": lambda t, m: t.update(counts=t["counts"].float()),
    "a count too many": lambda t, m: t.update(counts=torch.ones(len(t["counts"]) + 1, dtype=torch.int32)),
    "negative count": lambda t, m: t["counts"].__setitem__(0, -1),
    "coordinate is not a number": lambda t, m: t["coords"][0].__setitem__(0, float("nan")),
    "coordinates missing": lambda t, m: t.update(coords=t["coords"][:-1].clone()),
    "no axes": lambda t, m: t.update(coords=t["coords"][:, :0].clone()),
    "scale is not a number": lambda t, m: t["keys.scale"].view(-1).__setitem__(0, float("nan")),
    "infinite low": lambda t, m: t["values.low"].view(-1).__setitem__(0, float("inf")),
    "scale too short": lambda t, m: t.update({"keys.scale": t["keys.scale"][..., :-1].clone()}),
    "low of another shape": lambda t, m: t.update({"keys.low": t["keys.low"][:1].clone()}),
    "codes of three axes": lambda t, m: t.update({"keys.codes": t["keys.codes"][0].clone()}),
    "codes of int32": lambda t, m: t.update({"keys.codes": t["keys.codes"].int()}),
    "values of another length": lambda t, m: t.update(
        {name: t[name][:, :, :-1].clone() for name in ("values.codes", "values.scale", "values.low")}
    ),
    "three bits": lambda t, m: m["keys"].__setitem__(0, 3),
    "eight bits of four": lambda t, m: m["keys"].__setitem__(0, 8),
    "axis 5": lambda t, m: m["keys"].__setitem__(1, 5),
    "group 0": lambda t, m: m["keys"].__setitem__(2, 0),
    "huge group": lambda t, m: m["keys"].__setitem__(2, 1 << 40),
    "bits as text": lambda t, m: m["keys"].__setitem__(0, "4"),
    "two numbers": lambda t, m: m.update(keys=[4, -1]),
    "no parameters": lambda t, m: m.pop("keys"),
    "another form": lambda t, m: m.update(form="index"),
    "no form": lambda t, m: m.pop("form"),
    "unknown metadata": lambda t, m: m.update(more=1),
    "unknown tensor": lambda t, m: t.update(more=torch.zeros(1)),
    "dense and quantised": lambda t, m: t.update(keys=torch.zeros(2, 2, 2, 2)),
    "dense of three axes": lambda t, m: t.update(keys=torch.zeros(2, 2, 2)),
}


def test_the_parts_to_be_broken_are_whole() -> None:
    tensors, meta = _block_parts()
    assert decode(pack(tensors, meta, KEY), KEY).entries == tensors["counts"].shape[0]


@pytest.mark.parametrize("name", BREAKS)
def test_blocks_that_contradict_themselves(name: str) -> None:
    tensors, meta = _block_parts()
    BREAKS[name](tensors, meta)
    with pytest.raises(BlockCorrupt, match="local/v1/abc"):
        decode(pack(tensors, meta, KEY), KEY)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
TABLES = st.lists(
    st.tuples(
        st.sampled_from(["keys", "values", "coords", "counts", "runs", "keys.codes", "keys.scale", "x"]),
        st.sampled_from(["float32", "float16", "bfloat16", "uint8", "int32", "float64"]),
        st.lists(st.integers(-2, 1 << 62) | st.integers(0, 3), max_size=5),
    ),
    max_size=6,
)


def _only_corrupt(blob: bytes) -> None:
    for verify in (True, False):
        try:
            decode(blob, verify=verify)
        except BlockCorrupt:
            continue


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_fuzz_any_bytes(data: bytes) -> None:
    with pytest.raises(BlockCorrupt):
        decode(data)
    with pytest.raises(BlockCorrupt):
        decode(b"x2l-blob\1\0\0\0" + data)


@settings(max_examples=150, deadline=None)
@given(PLAIN, PLAIN, st.binary(max_size=200))
def test_fuzz_forged_structures(identity: Any, description: Any, body: bytes) -> None:
    _only_corrupt(forge(identity, [[], {}]))
    _only_corrupt(forge(IDENTITY, description, body))


@settings(max_examples=200, deadline=None)
@given(TABLES, st.dictionaries(st.sampled_from(["form", "keys", "values"]), PLAIN), st.binary(max_size=600))
def test_fuzz_forged_tables(table: Any, meta: Any, body: bytes) -> None:
    _only_corrupt(forge(IDENTITY, [table, {"form": "kv", **meta}], body))
    _only_corrupt(forge(IDENTITY, [[[*row[:2], [s % 4 for s in row[2]]] for row in table], {"form": "kv"}], body))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_fuzz_damage(data: st.DataObject) -> None:
    blob = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(blob) - 1))
        blob[start : start + data.draw(st.integers(0, 16))] = data.draw(st.binary(max_size=16))
    if bytes(blob) != SMALL:
        with pytest.raises(BlockCorrupt):
            decode(blob)
