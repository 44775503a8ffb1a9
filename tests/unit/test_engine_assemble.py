"""Pages: rotated once, shared, with biases where wanted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tiny import qwen3_vl
from x2l_cluster.compress import compress
from x2l_cluster.engine import Assembler, Prefix
from x2l_cluster.models import Page, Step, View
from x2l_cluster.types import Level, LevelSpec, Positions, Quant


@pytest.fixture(scope="module")
def lm():
    return qwen3_vl(0)


@pytest.fixture(scope="module")
def prefix(lm):
    return Prefix.of(lm, lm.prompt("?").prefix)


@pytest.fixture(scope="module")
def raw(lm, prefix):
    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 48, 3), dtype=np.uint8)
    recipe = lm.recipe(height=32, width=48, chunk_frames=8)
    tokens = lm.embed_chunk(frames, [float(i) for i in range(8)], prefix.end, recipe)
    return lm.prefill(tokens, Level.L, View([prefix.page]))


def answer(lm, prefix, pages: list[Page], end: float) -> torch.Tensor:
    tokens = lm.embed_text(lm.prompt("What is it?").suffix, end)
    return lm.forward([Step(tokens=tokens, view=View([prefix.page, *pages]))]).hidden[0]


def test_an_entry_that_stands_for_n_equal_tokens_with_log_n_is_those_n_tokens(lm, prefix, raw):
    """Twice the same keys, values and coordinates, or once with a count of two."""
    once = compress(raw, LevelSpec(pool="group", quant=Quant.NONE), "float32")
    twice = [Assembler(lm).page(once, once.coords)] * 2
    counted = replace(once, counts=torch.full_like(once.counts, 2))
    biased = Assembler(lm, log_count_bias=True).page(counted, counted.coords)
    plain = Assembler(lm).page(counted, counted.coords)
    expected = answer(lm, prefix, twice, 500.0)
    torch.testing.assert_close(answer(lm, prefix, [biased], 500.0), expected, atol=1e-4, rtol=1e-4)
    assert (answer(lm, prefix, [plain], 500.0) - expected).abs().max() > 1e-3


def test_an_entry_with_minus_infinity_is_not_seen(lm, prefix, raw):
    page = Assembler(lm).page(raw, raw.coords)
    half = raw.entries // 2
    hidden = torch.zeros(raw.entries)
    hidden[half:] = float("-inf")
    cut = Page(keys=page.keys[:, :, :half], values=page.values[:, :, :half])
    torch.testing.assert_close(
        answer(lm, prefix, [replace(page, bias=hidden)], 500.0), answer(lm, prefix, [cut], 500.0), atol=1e-5, rtol=1e-5
    )


def test_compact_positions_number_the_entries(lm, prefix, raw):
    blocks = [compress(raw, LevelSpec(pool=pool, quant=Quant.NONE), "float32") for pool in ("1x2", "group")]
    pages, end = Assembler(lm).pages(blocks, Positions.COMPACT, anchor=prefix.end, end=1e6)
    assert end == prefix.end + sum(block.entries for block in blocks)
    first = torch.full((1, 3), prefix.end + blocks[0].entries)
    torch.testing.assert_close(pages[1].keys[:, :, :1], lm.rotate(blocks[1].keys[:, :, :1], first))


def test_rotation_of_a_page_does_not_touch_the_block(lm, raw):
    before = raw.keys.clone()
    Assembler(lm).page(raw, raw.coords + 100)
    torch.testing.assert_close(raw.keys, before, atol=0, rtol=0)
