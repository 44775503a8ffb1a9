"""KV blocks as blobs: what goes in comes out, bit for bit, and equal blocks give equal bytes."""

from __future__ import annotations

import gc
import mmap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.blocks import raw_block, same
from x2l_cluster.compress.quantise import quantise
from x2l_cluster.errors import BlockCorrupt, InvalidInput
from x2l_cluster.kv.block import KVBlock, Quantised
from x2l_cluster.kv.codec import decode, encode, pack, ref_of, unpack
from x2l_cluster.types import BlockKey, Quant

KEY = BlockKey(tenant="local", video="v1", recipe="abc", epoch=3, kind="l", chunk=7)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dense_block_comes_back_bit_equal(dtype: torch.dtype) -> None:
    block = raw_block(dtype=dtype, text=2)
    back = decode(encode(block, KEY), KEY)
    assert same(block, back)
    assert isinstance(back.keys, torch.Tensor)
    assert back.keys.dtype is dtype


@pytest.mark.parametrize("quant", [Quant.INT8, Quant.INT4])
def test_a_quantised_block_comes_back_bit_equal(quant: Quant) -> None:
    block = quantise(raw_block(dim=16), quant, "float16")
    back = decode(encode(block, KEY), KEY)
    for before, after in ((block.keys, back.keys), (block.values, back.values)):
        assert isinstance(before, Quantised)
        assert isinstance(after, Quantised)
        assert (before.bits, before.axis, before.group) == (after.bits, after.axis, after.group)
        assert torch.equal(before.dequantise(), after.dequantise())
    assert back.runs == block.runs


def test_tensors_that_are_not_contiguous_are_stored_as_they_read() -> None:
    block = raw_block()
    assert isinstance(block.keys, torch.Tensor)
    strided = replace(block, keys=block.keys.transpose(0, 1).contiguous().transpose(0, 1))
    assert encode(strided, KEY) == encode(block, KEY)


def test_a_block_without_entries_is_a_block() -> None:
    empty = KVBlock(
        keys=torch.empty(2, 1, 0, 4),
        values=torch.empty(2, 1, 0, 4),
        coords=torch.empty(0, 3),
        counts=torch.empty(0, dtype=torch.int32),
        runs=(),
    )
    assert decode(encode(empty, KEY)).entries == 0


def test_equal_blocks_have_equal_payloads_whatever_the_epoch() -> None:
    block = raw_block()
    old, new = encode(block, KEY), encode(block, replace(KEY, epoch=1 << 40))
    assert old != new
    assert ref_of(old).checksum == ref_of(new).checksum
    assert encode(block, KEY) == old


def test_the_checksum_covers_what_the_entries_are() -> None:
    block = raw_block(groups=1)
    other = replace(block, runs=(*block.runs[:-1], replace(block.runs[-1], group=1)))
    assert ref_of(encode(block, KEY)).checksum != ref_of(encode(other, KEY)).checksum


def test_the_ref_says_what_a_manifest_needs() -> None:
    block = raw_block()
    blob = encode(block, KEY)
    ref = ref_of(blob)
    assert (ref.kind, ref.epoch, ref.size_bytes, ref.entries) == ("l", 3, len(blob), block.entries)
    assert decode(blob, KEY, ref).entries == block.entries


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
def test_decoding_makes_no_copy_and_keeps_the_buffer(buffer: type) -> None:
    blob = encode(raw_block(), KEY)
    kept = buffer(bytes(blob) if buffer is memoryview else blob)
    block = decode(kept)
    assert isinstance(block.keys, torch.Tensor)
    start = unpack(kept)[0]["keys"].data_ptr()
    assert block.keys.data_ptr() == start
    expected = block.keys.clone()
    del kept
    gc.collect()
    assert torch.equal(block.keys, expected)


def test_a_mapped_file_decodes_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(encode(raw_block(), KEY))
    with path.open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    assert same(decode(view), raw_block())


def test_a_blob_at_an_odd_address_decodes() -> None:
    odd = memoryview(b"x" + bytes(encode(raw_block(), KEY)))[1:]
    assert same(decode(odd), raw_block())


def test_score_indexes_are_tensors_and_metadata_too() -> None:
    key = replace(KEY, kind="x-1f")
    tensors = {
        "keys": torch.randint(0, 255, (3, 5, 8), dtype=torch.uint8),
        "heads": torch.tensor([[1, 2]], dtype=torch.int32),
        "scalar": torch.tensor(1.5),
        "none": torch.empty(0, 4, dtype=torch.bfloat16),
    }
    blob = pack(tensors, {"bits": 8, "names": ["a", "b"]}, key, entries=5)
    back, meta = unpack(blob, key, ref_of(blob))
    assert meta == {"bits": 8, "names": ["a", "b"]}
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype is tensor.dtype
        assert torch.equal(back[name], tensor)
    with pytest.raises(BlockCorrupt, match="no KV block"):
        decode(blob, key)


def test_tensors_start_at_multiples_of_64() -> None:
    back, _ = unpack(encode(raw_block(dtype=torch.float16), KEY))
    starts = [tensor.data_ptr() for tensor in back.values()]
    assert all((start - starts[0]) % 64 == 0 for start in starts)


def test_what_the_format_does_not_have_is_refused() -> None:
    with pytest.raises(InvalidInput, match="float64"):
        pack({"x": torch.zeros(1, dtype=torch.float64)}, {}, KEY)
    with pytest.raises(InvalidInput, match="description"):
        pack({}, {"x": "y" * (1 << 20)}, KEY)
