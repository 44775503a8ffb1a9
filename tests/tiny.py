"""Tiny random models of real architectures, and a tokenizer to go with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from x2l_cluster.kv.block import KVBlock, Run
from x2l_cluster.models.base import Tokens
from x2l_cluster.models.qwen3_vl import Qwen3VL
from x2l_cluster.models.view import View
from x2l_cluster.types import Level, Role

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TEMPLATE = (
    "{%- for m in messages -%}<|im_start|>{{ m.role }}{{ '\n' }}"
    "{%- if m.content is string -%}{{ m.content }}{%- else -%}{%- for part in m.content -%}"
    "{%- if part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- else -%}{{ part.text }}{%- endif -%}{%- endfor -%}{%- endif -%}<|im_end|>{{ '\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n' }}{%- endif -%}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token; the special ones come first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(SPECIAL + alphabet)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL[1:],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def qwen3_vl_model(seed: int = 0, dtype: torch.dtype = torch.float32, **text: Any) -> Qwen3VLForConditionalGeneration:
    """A random model of a few thousand parameters; ``text`` overrides the text configuration."""
    tokenizer = byte_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        }
        | text,
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": text.get("hidden_size", 32),
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    for parameter in model.parameters():  # the stock initialisation is so small that every logit looks alike
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.6 / parameter.shape[-1] ** 0.5)
    return model.to(dtype).eval()


def checkpoint(folder: Path, seed: int = 0) -> str:
    """Such a model as a checkpoint on disk, for processes that load one; it writes on and on."""
    qwen3_vl_model(seed).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def qwen3_vl(seed: int = 0, dtype: torch.dtype = torch.float32, **text: Any) -> Qwen3VL:
    return Qwen3VL(qwen3_vl_model(seed, dtype, **text), byte_tokenizer(), weights=f"tiny{seed}")


class TwoPass(Qwen3VL):
    """A model that compresses while it prefills, one pass per level, as VST models do.

    Every 2nd (L) or 8th (H) entry stays.
    """

    RATIO: ClassVar = {Level.L: 2, Level.H: 8}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._spec = replace(self._spec, family="two_pass", passes=(Level.L, Level.H), finished=True)

    def prefill(self, tokens: Tokens, level: Level, memory: View) -> KVBlock:
        raw = super().prefill(tokens, level, memory)
        stays = torch.arange(self.RATIO[level] - 1, raw.entries, self.RATIO[level])
        if memory.pages[0].entries == 0:  # the prefix is never compressed
            return raw
        return KVBlock(
            keys=raw.keys[:, :, stays],
            values=raw.values[:, :, stays],
            coords=raw.coords[stays],
            counts=torch.full((len(stays),), self.RATIO[level], dtype=torch.int32),
            runs=(Run(role=Role.TEXT, start=0, stop=len(stays), group=0),),
        )


def two_pass(seed: int = 0) -> TwoPass:
    return TwoPass(qwen3_vl_model(seed), byte_tokenizer(), weights=f"twopass{seed}")
