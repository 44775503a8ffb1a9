"""At ratio 1, unquantised, with unbounded memory and every chunk at L, the method is the stock model."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tests.tiny import qwen3_vl
from x2l_cluster.engine.assemble import Assembler, Prefix
from x2l_cluster.engine.decode import Decoder, Generation
from x2l_cluster.engine.prefill import Prefiller
from x2l_cluster.kv.block import KVBlock
from x2l_cluster.models.base import Step
from x2l_cluster.models.pixels import patchify
from x2l_cluster.models.qwen3_vl import Qwen3VL
from x2l_cluster.models.view import View
from x2l_cluster.types import Level, LevelSpec, Positions, Quant, Recipe, Span

IDENTITY = LevelSpec(pool="1x1", quant=Quant.NONE)
QUESTION = "What code is shown with the red star?"


@dataclass(frozen=True)
class Chunk:
    index: int
    frames: np.ndarray
    times_s: np.ndarray
    span: Span

    @property
    def sampled(self) -> int:
        return len(self.frames)


def video(frames: int, height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    pictures = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return pictures, np.arange(frames) * 0.5


def chunked(pictures: np.ndarray, times: np.ndarray, size: int) -> list[Chunk]:
    return [
        Chunk(i // size, pictures[i : i + size], times[i : i + size], Span(start_s=times[i], end_s=times[i] + size / 2))
        for i in range(0, len(pictures), size)
    ]


def whole_at_ratio_1(lm: Qwen3VL, recipe: Recipe, chunks: list[Chunk], prompt_prefix: tuple[int, ...]):
    """(view over everything, original position of the question)."""
    prefix = Prefix.of(lm, prompt_prefix)
    done = list(Prefiller(lm, recipe, prefix).run(chunks))
    blocks: list[KVBlock] = [item.blocks[Level.L] for item in done]
    pages, end = Assembler(lm).pages(blocks, recipe.positions, anchor=prefix.end, end=done[-1].position_end)
    return View([prefix.page, *pages]), end


def stock_inputs(lm: Qwen3VL, pictures: np.ndarray, times: np.ndarray, prompt) -> dict[str, torch.Tensor]:
    """What the stock processor would hand to the stock model."""
    config, tokenizer = lm._model.config, lm._tokenizer
    height, width = pictures.shape[1] // 8, pictures.shape[2] // 8
    tokens = height * width // 4
    text = "".join(
        f"<{(times[i] + times[i + 1]) / 2:.1f} seconds><|vision_start|>" + "<|video_pad|>" * tokens + "<|vision_end|>"
        for i in range(0, len(pictures), 2)
    )
    middle = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*prompt.prefix, *middle, *prompt.suffix]])
    pixels = (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == config.video_token_id).int() * 2,
        "pixel_values_videos": patchify(pixels, patch=8, merge=2, group_frames=2),
        "video_grid_thw": torch.tensor([[len(pictures) // 2, height, width]]),
    }


SHAPES = [
    # frames, chunk frames, height, width, text configuration
    (12, 4, 32, 48, {}),
    (10, 4, 48, 32, {"num_attention_heads": 6, "num_key_value_heads": 3}),
    (
        8,
        2,
        32,
        32,
        {
            "hidden_size": 48,
            "head_dim": 8,
            "num_hidden_layers": 5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e5,
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
            },
        },
    ),
    (6, 16, 64, 32, {"num_key_value_heads": 1}),
]


@pytest.mark.parametrize(("frames", "chunk", "height", "width", "text"), SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_chunked_prefill_at_ratio_1_gives_the_stock_logits(frames, chunk, height, width, text, seed):
    lm = qwen3_vl(seed, **text)
    recipe = lm.recipe(
        height=height,
        width=width,
        chunk_frames=chunk,
        fine=IDENTITY,
        coarse=IDENTITY,
        memory_entries=None,
        kv_dtype="float32",
    )
    pictures, times = video(frames, height, width, seed)
    prompt = lm.prompt(QUESTION)
    view, end = whole_at_ratio_1(lm, recipe, chunked(pictures, times, chunk), prompt.prefix)
    hidden = lm.forward([Step(tokens=lm.embed_text(prompt.suffix, end), view=view)]).hidden[0]
    with torch.no_grad():
        stock = lm._model(**stock_inputs(lm, pictures, times, prompt)).logits[0, -len(prompt.suffix) :]
    assert stock.std() > 0.1
    torch.testing.assert_close(lm.logits(hidden), stock, atol=1e-4, rtol=1e-4)


def test_bfloat16_stays_within_its_tolerance_of_the_stock_forward():
    lm = qwen3_vl(3, torch.bfloat16)
    recipe = lm.recipe(
        height=32, width=32, chunk_frames=4, fine=IDENTITY, coarse=IDENTITY, memory_entries=None, kv_dtype="bfloat16"
    )
    pictures, times = video(12, 32, 32)
    prompt = lm.prompt(QUESTION)
    view, end = whole_at_ratio_1(lm, recipe, chunked(pictures, times, 4), prompt.prefix)
    hidden = lm.forward([Step(tokens=lm.embed_text(prompt.suffix, end), view=view)]).hidden[0]
    with torch.no_grad():
        stock = lm._model(**stock_inputs(lm, pictures, times, prompt)).logits[0, -len(prompt.suffix) :].float()
    difference = (lm.logits(hidden) - stock).norm() / stock.norm()
    assert difference < 0.03


@pytest.mark.parametrize("seed", range(3))
def test_greedy_decoding_writes_the_tokens_of_generate(seed):
    lm = qwen3_vl(seed)
    recipe = lm.recipe(
        height=32, width=48, chunk_frames=4, fine=IDENTITY, coarse=IDENTITY, memory_entries=None, kv_dtype="float32"
    )
    pictures, times = video(12, 32, 48, seed)
    prompt = lm.prompt(QUESTION)
    view, end = whole_at_ratio_1(lm, recipe, chunked(pictures, times, 4), prompt.prefix)
    decoder = Decoder(lm)
    stream = decoder.join(view, lm.embed_text(prompt.suffix, end), Generation(max_tokens=12, ignore_stop_ids=True))
    list(decoder.run())
    inputs = stock_inputs(lm, pictures, times, prompt)
    stock = lm._model.generate(
        **inputs, max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    assert stream.ids == stock[0, inputs["input_ids"].shape[1] :].tolist()


def test_compression_changes_the_logits():
    """The golden tests would be worth nothing if the levels did not reach the model."""
    lm = qwen3_vl(0)
    pictures, times = video(12, 32, 48)
    prompt = lm.prompt(QUESTION)
    logits = []
    for spec in (IDENTITY, LevelSpec(pool="1x2", quant=Quant.NONE), LevelSpec(pool="1x2", quant=Quant.INT4)):
        recipe = lm.recipe(
            height=32, width=48, chunk_frames=4, fine=spec, coarse=IDENTITY, memory_entries=None, kv_dtype="float32"
        )
        view, end = whole_at_ratio_1(lm, recipe, chunked(pictures, times, 4), prompt.prefix)
        hidden = lm.forward([Step(tokens=lm.embed_text(prompt.suffix, end), view=view)]).hidden[0]
        logits.append(lm.logits(hidden))
    for a, b in itertools.combinations(logits, 2):
        assert (a - b).abs().max() > 1e-3


def test_scaled_positions_equal_original_ones_while_the_video_fits():
    lm = qwen3_vl(0)
    pictures, times = video(8, 32, 32)
    prompt = lm.prompt(QUESTION)
    seen = []
    for positions in (Positions.ORIGINAL, Positions.SCALED):
        recipe = lm.recipe(height=32, width=32, chunk_frames=4, kv_dtype="float32", positions=positions)
        view, end = whole_at_ratio_1(lm, recipe, chunked(pictures, times, 4), prompt.prefix)
        seen.append(lm.forward([Step(tokens=lm.embed_text(prompt.suffix, end), view=view)]).hidden[0])
    torch.testing.assert_close(*seen, atol=0, rtol=0)
