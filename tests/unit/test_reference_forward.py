"""The training forward against stock transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from x2l_cluster.reference.forward import Shape, patchify, text, vision
from x2l_cluster.reference.layout import RAW, Special, make_layout

SPECIAL = Special(vision_start=3, vision_end=4, video=6, pad=0)
PREFIX = [1, 40, 41]


def _encode(words: str) -> list[int]:
    return [20 + ord(c) % 30 for c in words if c not in " s"]


def _model(seed: int, deepstack: list[int]) -> Qwen3VLForConditionalGeneration:
    torch.manual_seed(seed)
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2],
                                "mrope_interleaved": True}, "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32, "num_position_embeddings": 64,
            "deepstack_visual_indexes": deepstack,
        },
        image_token_id=5, video_token_id=6, vision_start_token_id=3, vision_end_token_id=4, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3VLForConditionalGeneration(config).eval()
    for parameter in model.parameters():  # large enough that an error cannot hide
        torch.nn.init.normal_(parameter, std=0.15)
    return model


@pytest.mark.parametrize(("seed", "groups", "deepstack"), [(0, 4, [0, 1]), (1, 5, [2]), (2, 3, [0, 1, 2])])
@torch.no_grad()
def test_causal_raw_forward_equals_stock(seed: int, groups: int, deepstack: list[int]) -> None:
    model = _model(seed, deepstack)
    shape, weights = Shape.of(model.config), model.state_dict()
    frames = torch.randn(groups, 2, 3, 32, 32)
    patches = patchify(frames, shape.patch, shape.merge)
    times = [2.0 * g + 0.5 + 95 for g in range(groups)]
    layout = make_layout(PREFIX, times, _encode, SPECIAL, chunk_groups=2)
    question = torch.randint(8, 64, (1, 2, 6))

    tokens, deep = vision(weights, shape, patches, side=8)
    states = torch.full((1, 2, layout.chunks), RAW)
    hidden, _ = text(weights, shape, layout, tokens[None], [d[None] for d in deep], question, states, causal=True)
    ours = hidden @ weights["model.language_model.embed_tokens.weight"].T

    for q in range(2):
        ids = torch.cat([layout.ids[layout.valid], question[0, q]])[None]
        stock = model(
            input_ids=ids, pixel_values_videos=patches.flatten(0, 1), video_grid_thw=torch.tensor([[groups, 8, 8]]),
            mm_token_type_ids=(ids == 6).int() * 2, logits_to_keep=6,
        ).logits  # fmt: skip
        torch.testing.assert_close(ours[0, q], stock[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_one_chunk_needs_no_past_and_equals_stock() -> None:
    model = _model(3, [0])
    shape, weights = Shape.of(model.config), model.state_dict()
    patches = patchify(torch.randn(3, 2, 3, 32, 32), shape.patch, shape.merge)
    layout = make_layout(PREFIX, [0.5, 2.5, 4.5], _encode, SPECIAL, chunk_groups=4)
    question = torch.randint(8, 64, (1, 1, 5))
    tokens, deep = vision(weights, shape, patches, side=8)
    args = (weights, shape, layout, tokens[None], [d[None] for d in deep], question, torch.full((1, 1, 1), RAW))
    torch.testing.assert_close(text(*args)[0], text(*args, causal=True)[0], rtol=1e-4, atol=1e-4)
