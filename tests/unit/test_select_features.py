"""The score index: what is kept comes back, and can be made again from the stored block, byte for byte."""

from __future__ import annotations

import pytest
import torch

from tests.blocks import raw_block
from x2l_cluster.compress import compress
from x2l_cluster.errors import BlockCorrupt
from x2l_cluster.kv.block import KVBlock
from x2l_cluster.select import Bank, HeadKeys
from x2l_cluster.types import FINE, Quant

HEADS = ((0, 1), (2, 0), (2, 1))


def stored(seed: int = 0, **shape: int) -> KVBlock:
    return compress(raw_block(layers=3, heads=2, seed=seed, **shape), FINE, "float16")


@pytest.mark.parametrize("storage", list(Quant))
def test_features_round_trip(storage: Quant) -> None:
    kept = HeadKeys.of(stored(), HEADS, storage)
    back = HeadKeys.from_tensors(*kept.to_tensors())
    assert back.heads == HEADS
    assert torch.equal(back.dense(), kept.dense())
    assert torch.equal(back.coords, kept.coords)


@pytest.mark.parametrize("storage", list(Quant))
def test_features_can_be_rebuilt_byte_equal_from_the_stored_block(storage: Quant) -> None:
    block = stored()
    first = HeadKeys.of(block.dequantised(), HEADS, storage).to_tensors()
    again = HeadKeys.of(block, HEADS, storage).to_tensors()
    assert first.meta == again.meta
    assert first.tensors.keys() == again.tensors.keys()
    for name, tensor in first.tensors.items():
        assert tensor.numpy().tobytes() == again.tensors[name].numpy().tobytes(), name


def test_int8_storage_is_small_and_close() -> None:
    block = stored(groups=8, rows=7, cols=8)
    full, small = HeadKeys.of(block, HEADS), HeadKeys.of(block, HEADS, Quant.INT8)
    assert not isinstance(small.keys, torch.Tensor)
    assert isinstance(full.keys, torch.Tensor)
    assert small.keys.nbytes < 0.3 * full.keys.nbytes
    assert (small.dense() - full.dense()).abs().max() < 0.03


@pytest.mark.parametrize("length", [1, 3])
def test_a_bank_keeps_chunks_apart(length: int) -> None:
    blocks = [stored(seed, groups=1 + (seed % length)) for seed in range(4)]
    parts = [HeadKeys.of(block, HEADS) for block in blocks]
    bank = Bank.of((3, 4, 6, 9), parts)
    assert bank.chunks == (3, 4, 6, 9)
    assert bank.keys.shape[:2] == (3, sum(b.entries for b in blocks))
    assert bank.chunk_of.bincount().tolist() == [b.entries for b in blocks]
    cells = bank.by_chunk(bank.keys[..., 0], float("-inf"))
    for i, part in enumerate(parts):
        assert torch.equal(cells[:, i, : part.entries], part.dense()[..., 0])
        assert (cells[:, i, part.entries :] == float("-inf")).all()


def test_an_empty_bank_has_no_chunks() -> None:
    assert Bank.of((), ()).chunks == ()


def test_what_was_tampered_with_is_refused() -> None:
    tensors, meta = HeadKeys.of(stored(), HEADS, Quant.INT8).to_tensors()
    bad = [
        ({}, meta),
        (tensors, {}),
        (tensors, {**meta, "form": "kv"}),
        (tensors, {**meta, "heads": [[0, 1]]}),
        (tensors, {**meta, "heads": 3}),
        (tensors, {**meta, "group": 0}),
        (tensors, {**meta, "bits": 0}),
        ({**tensors, "coords": tensors["coords"][:3]}, meta),
        ({**tensors, "scale": tensors["scale"][:, :, :1]}, meta),
    ]
    for parts in bad:
        with pytest.raises(BlockCorrupt):
            HeadKeys.from_tensors(*parts)
