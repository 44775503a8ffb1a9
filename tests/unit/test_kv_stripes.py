"""Blocks in stripes: cut and joined again they are the same block, and no stripe of another block gets in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.blocks import raw_block
from tests.unit.test_kv_codec_hostile import forge
from x2l_cluster.compress.quantise import quantise
from x2l_cluster.errors import BlockCorrupt
from x2l_cluster.kv.block import KVBlock, Quantised
from x2l_cluster.kv.codec import check, decode, decode_block, encode, encode_stripe, ref_of, ref_of_all, unpack
from x2l_cluster.kv.stripes import STRIPE_BYTES, Cut, join, split
from x2l_cluster.types import BlockKey, BlockRef, Quant

KEY = BlockKey(tenant="local", video="v1", recipe="abc", epoch=3, kind="l", chunk=7)
MIB = 1 << 20


def stored(block: KVBlock, target: int, key: BlockKey = KEY) -> tuple[list[bytearray], BlockRef]:
    blobs = [encode_stripe(stripe, key) for stripe in split(block, target)]
    return blobs, ref_of_all([ref_of(blob) for blob in blobs])


def parts(block: KVBlock) -> list[torch.Tensor]:
    found = [block.coords, block.counts]
    for part in (block.keys, block.values):
        found += [part.codes, part.scale, part.low] if isinstance(part, Quantised) else [part]
    return found


def equal(a: KVBlock, b: KVBlock) -> bool:
    return a.runs == b.runs and all(torch.equal(x, y) for x, y in zip(parts(a), parts(b), strict=True))


def made(layers: int, heads: int, groups: int, side: int, quant: Quant) -> KVBlock:
    block = raw_block(layers=layers, heads=heads, groups=groups, rows=side, cols=side, dim=16, seed=layers + heads)
    return quantise(block, quant, "float16")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 7),
    st.sampled_from(list(Quant)),
    st.integers(1, 60_000),
)
def test_cut_and_joined_it_is_the_same_block(
    layers: int, heads: int, groups: int, side: int, quant: Quant, target: int
) -> None:
    block = made(layers, heads, groups, side, quant)
    assert equal(join(split(block, target)), block)
    blobs, ref = stored(block, target)
    assert (ref.stripes, ref.size_bytes, ref.entries) == (len(blobs), sum(map(len, blobs)), block.entries)
    check(blobs, KEY, ref)
    assert equal(decode_block(blobs, KEY, ref), block)
    if target > 20_000:  # beside what every blob has in front of its tensors
        assert max(map(len, blobs)) <= target


def test_a_small_block_is_one_blob_byte_equal_to_the_uncut_one() -> None:
    block = made(2, 2, 3, 4, Quant.INT8)
    ((blob,), ref) = stored(block, STRIPE_BYTES)
    assert blob == encode(block, KEY)
    assert ref == ref_of(blob)


@pytest.mark.parametrize("quant", list(Quant))
def test_stripes_of_a_large_model_have_the_size_that_travels_best(quant: Quant) -> None:
    """36 layers of 8 heads of 128, 800 entries: a single layer takes more than one stripe."""
    shape = (36, 8, 800, 128)
    cells = torch.zeros(shape, dtype=torch.uint8)[..., : 64 if quant is Quant.INT4 else 128]
    keys = values = torch.zeros(shape, dtype=torch.float16)
    whole = replace(raw_block(groups=100, rows=1, cols=3, time=3, text=0), keys=keys, values=values)
    assert whole.entries == 800
    if quant is not Quant.NONE:
        group = {Quant.INT8: (64, 128), Quant.INT4: (32, 32)}[quant]
        scale = torch.zeros(36, 8, -(-800 // group[0]), 128, dtype=torch.float16)
        rows = torch.zeros(36, 8, 800, 128 // group[1], dtype=torch.float16)
        q = Quantised(codes=cells, scale=scale, low=scale, bits=quant.bits, axis=-2, group=group[0])
        whole = replace(whole, keys=q, values=replace(q, scale=rows, low=rows, axis=-1, group=group[1]))
    sizes = [len(encode_stripe(stripe, KEY)) for stripe in split(whole) if stripe.index < 50]
    assert all(3 * MIB // 8 <= size <= STRIPE_BYTES for size in sizes)
    cut = Cut.of(whole, STRIPE_BYTES)
    layers = [cut.box(index)[0] for index in range(cut.stripes)]
    assert layers == sorted(layers, key=lambda side: side.start), "early layers come first"
    assert sum(
        (a.stop - a.start) * (b.stop - b.start) * (c.stop - c.start) for a, b, c in map(cut.box, range(cut.stripes))
    ) == prod(cut.whole)


def prod(sizes: tuple[int, ...]) -> int:
    return sizes[0] * sizes[1] * sizes[2]


def test_one_head_too_large_for_a_stripe_is_cut_between_its_scales() -> None:
    block = made(2, 1, 40, 4, Quant.INT8)
    cut = Cut.of(block, 12_000)
    assert cut.parts[:2] == (2, 1)
    assert cut.parts[2] > 1
    assert cut.step % 64 == 0


BLOCK = made(3, 2, 3, 4, Quant.INT8)
OTHER = replace(BLOCK, values=replace(BLOCK.values, low=BLOCK.values.low + 1))  # type: ignore[type-var, union-attr]
TARGET = 9_000

Change = Callable[[list[bytearray]], list[bytearray]]
HOSTILE: dict[str, Change] = {
    "swapped": lambda blobs: [blobs[1], blobs[0], *blobs[2:]],
    "the last one missing": lambda blobs: blobs[:-1],
    "one too many": lambda blobs: [*blobs, blobs[-1]],
    "none": lambda blobs: [],
    "one twice": lambda blobs: [blobs[0], blobs[0], *blobs[2:]],
    "one of another epoch": lambda blobs: [blobs[0], stored(BLOCK, TARGET, replace(KEY, epoch=4))[0][1], *blobs[2:]],
    "one of another chunk": lambda blobs: [blobs[0], stored(BLOCK, TARGET, replace(KEY, chunk=8))[0][1], *blobs[2:]],
    "one of other content": lambda blobs: [blobs[0], stored(OTHER, TARGET)[0][1], *blobs[2:]],
    "all of other content": lambda blobs: stored(OTHER, TARGET)[0],
    "one of another cut": lambda blobs: [blobs[0], stored(BLOCK, 14_000)[0][1], *blobs[2:]],
    "all of another cut": lambda blobs: stored(BLOCK, 14_000)[0],
    "uncut": lambda blobs: [encode(BLOCK, KEY)],
    "one truncated": lambda blobs: [blobs[0], blobs[1][: len(blobs[1]) // 2], *blobs[2:]],
    "one with a flipped bit": lambda blobs: [
        blobs[0],
        bytearray(byte ^ (at == len(blobs[1]) - 100) for at, byte in enumerate(blobs[1])),
        *blobs[2:],
    ],
}


@pytest.mark.parametrize("how", HOSTILE)
def test_stripes_that_do_not_belong_together_are_no_block(how: str) -> None:
    blobs, ref = stored(BLOCK, TARGET)
    assert len(blobs) > 2
    with pytest.raises(BlockCorrupt):
        decode_block(HOSTILE[how](blobs), KEY, ref)
    with pytest.raises(BlockCorrupt):
        check(HOSTILE[how](blobs), KEY, ref)


def test_a_stripe_is_not_taken_for_a_block() -> None:
    blobs, _ = stored(BLOCK, TARGET)
    with pytest.raises(BlockCorrupt, match="stripes"):
        decode(blobs[0], KEY)
    with pytest.raises(BlockCorrupt):
        decode(blobs[1], replace(KEY, stripe=1))


@pytest.mark.parametrize(
    "cut",
    [
        [],
        "x",
        [3, 2, 66, 3, 1, 1],
        [3, 2, 66, 3, 1, 1, 0],
        [3, 2, 66, 4, 1, 1, 1],
        [3, 2, 66, 3, 0, 1, 1],
        [3, 2, 66, -3, -1, 1, 1],
        [3, 2, 66, 1, 1, 3, 10],
        [3, 2, 66.0, 3, 1, 1, 1],
        [1 << 40, 2, 66, 3, 1, 1, 1],
        [3, 2, 1 << 60, 3, 1, 1, 1],
        [1 << 62, 1 << 62, 1 << 62, 1 << 62, 1 << 62, 1 << 62, 1],
    ],
)
def test_a_cut_that_cannot_be_claims_no_memory_and_gets_nowhere(cut: object) -> None:
    """Checksums that fit are no proof of sense: the front of a blob may be forged whole."""
    blob = stored(BLOCK, TARGET)[0][0]
    tensors, meta = unpack(blob, KEY)
    table = [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()]
    body = b"".join(t.contiguous().numpy().tobytes().ljust(-(-t.nbytes // 64) * 64, b"\0") for t in tensors.values())
    identity = ["local", "v1", "abc", 3, "l", 7, 0]
    good = forge(identity, [table, meta], body)
    assert next(iter(split(BLOCK, TARGET))).cut.stripes > 1
    with pytest.raises(BlockCorrupt, match="one of"):
        decode(good, KEY)
    hostile = forge(identity, [table, {**meta, "cut": cut}], body)
    ref = replace(ref_of(hostile), entries=BLOCK.entries, stripes=3)
    with pytest.raises(BlockCorrupt):
        decode_block([hostile], KEY, ref)
    with pytest.raises(BlockCorrupt):
        decode(hostile, KEY)
