"""Qwen3-VL: timestamps as text, DeepStack, interleaved M-RoPE; one prefill pass gives both levels.

The weights are the stock ``Qwen3VLForConditionalGeneration``; the layer loop is ours, because KVs have to leave before
RoPE and attention has to see pages instead of a cache object. The token stream and the positions are those of the stock
processor and ``get_rope_index``, so at ratio 1 the logits equal the stock forward (the golden test).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from x2l_cluster.errors import InvalidQuestion, UnsupportedModel
from x2l_cluster.kv.block import KVBlock, Run
from x2l_cluster.models.attend import Attention
from x2l_cluster.models.base import ModelSpec, Prompt, Step, Tokens, Trace
from x2l_cluster.models.pixels import fit, patchify, resize
from x2l_cluster.models.view import View
from x2l_cluster.models.words import content_spans, tokens_within
from x2l_cluster.types import Level, Recipe, Role

FAMILY = "qwen3_vl"
_QUESTION = "\x00question\x00"
_MEAN, _STD = 0.5, 0.5
_ONE_TOKEN = (Run(role=Role.TEXT, start=0, stop=1, group=0),)


class Qwen3VL:
    """A :class:`~x2l_cluster.models.base.VideoLM` over a loaded Qwen3-VL model and its tokenizer.

    Args:
        model: ``Qwen3VLForConditionalGeneration`` in eval mode, already on its device.
        tokenizer: a fast tokenizer with a chat template.
        weights: digest of weights and configuration.
        preferred: recipe fields the checkpoint does best with.
    """

    def __init__(self, model: Any, tokenizer: Any, *, weights: str, preferred: Mapping[str, Any] | None = None) -> None:
        text, vision = model.config.text_config, model.config.vision_config
        rope = text.rope_parameters
        if rope.get("rope_type", "default") in ("dynamic", "longrope"):
            raise UnsupportedModel(
                f"rope type {rope['rope_type']!r} depends on the length of the sequence, so keys cannot be kept before "
                "rotation; use a checkpoint with default, linear, llama3 or yarn scaling"
            )
        self._model = model
        self._text = model.model.language_model
        self._vision = model.model.visual
        self._tokenizer = tokenizer
        self._preferred = dict(preferred or {})
        # Asked for at every step, and a walk over all modules in the stock model.
        self._device: torch.device = torch.device(model.device)
        self._dtype: torch.dtype = model.dtype
        rotary = self._text.rotary_emb
        self._inv_freq = rotary.inv_freq.float()
        self._rope_scale = float(rotary.attention_scaling)
        self._axis_of = _axis_of_frequency(len(self._inv_freq), rotary.mrope_section, self._inv_freq.device)
        self._merge, self._patch = vision.spatial_merge_size, vision.patch_size
        self._start_id = model.config.vision_start_token_id
        self._end_id = model.config.vision_end_token_id
        start, video, end = tokenizer.convert_ids_to_tokens([self._start_id, model.config.video_token_id, self._end_id])
        # Published templates wrap the place of the video in markers, which the groups' own markers replace.
        self._places = (start + video + end, video)
        self._spec = ModelSpec(
            family=FAMILY,
            weights=weights,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            axes=3,
            max_position=text.max_position_embeddings,
            group_frames=vision.temporal_patch_size,
            unit=self._merge * self._patch,
        )
        stop = {tokenizer.eos_token_id, *_as_list(model.generation_config.eos_token_id)}
        self._stop_ids = frozenset(int(i) for i in stop if i is not None)

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def stop_ids(self) -> frozenset[int]:
        return self._stop_ids

    def recipe(self, **changes: Any) -> Recipe:
        return self._spec.recipe(**(self._preferred | changes | {"dtype": str(self._dtype).removeprefix("torch.")}))

    # --- text -------------------------------------------------------------------------------------------------------

    def prompt(self, question: str, history: Sequence[tuple[str, str]] = ()) -> Prompt:
        self._refuse_special_tokens(question, *(text for turn in history for text in turn))
        if not question.strip():
            raise InvalidQuestion("the question is empty; ask something")
        asked = [*(q for q, _ in history), _QUESTION]
        answers = [a for _, a in history]
        messages: list[dict[str, Any]] = []
        for turn, text in enumerate(asked):
            video = [{"type": "video"}] if turn == 0 else []
            messages.append({"role": "user", "content": [*video, {"type": "text", "text": text}]})
            if turn < len(answers):
                messages.append({"role": "assistant", "content": [{"type": "text", "text": answers[turn]}]})
        rendered: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        place = next((place for place in self._places if place in rendered), None)
        if place is None:
            raise UnsupportedModel("the chat template of this checkpoint has no place for a video")
        before, _, after = rendered.partition(place)
        lead, _, tail = after.partition(_QUESTION)
        suffix = self._tokenizer(lead + question + tail, add_special_tokens=False, return_offsets_mapping=True)
        offsets = [(a - len(lead), b - len(lead)) for a, b in suffix["offset_mapping"]]
        words = tokens_within(offsets, [(0, len(question))])
        return Prompt(
            prefix=tuple(self._tokenizer(before, add_special_tokens=False)["input_ids"]),
            suffix=tuple(suffix["input_ids"]),
            question=words,
            content=tokens_within(offsets, content_spans(question)) or words,
        )

    def _refuse_special_tokens(self, *texts: str) -> None:
        for token in {*self._tokenizer.all_special_tokens, *self._places}:
            if any(token in text for text in texts):
                raise InvalidQuestion(
                    f"the question contains {token!r}, which is a control token of the model; leave it out"
                )

    def text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    @torch.inference_mode()
    def embed_text(self, ids: Sequence[int], position: float) -> Tokens:
        coords = position + torch.arange(len(ids), device=self.device, dtype=torch.float32)
        return Tokens(
            embeds=self._text.embed_tokens(torch.tensor(ids, device=self.device)),
            coords=coords[:, None].expand(-1, 3),
            runs=(Run(role=Role.TEXT, start=0, stop=len(ids), group=0),),
            end=position + len(ids),
        )

    @torch.inference_mode()
    def embed_next(self, ids: Sequence[int], positions: Sequence[float]) -> list[Tokens]:
        embeds = self._text.embed_tokens(torch.tensor(ids, device=self.device)).split(1)
        coords = torch.tensor(positions, device=self.device, dtype=torch.float32)[:, None].expand(-1, 3).split(1)
        return [
            Tokens(embeds=embed, coords=coord, runs=_ONE_TOKEN, end=position + 1)
            for embed, coord, position in zip(embeds, coords, positions, strict=True)
        ]

    # --- pictures ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def embed_chunk(
        self, frames: np.ndarray[Any, np.dtype[np.uint8]], times_s: Sequence[float], position: float, recipe: Recipe
    ) -> Tokens:
        group_frames = self._spec.group_frames
        assert len(frames) == len(times_s) and len(frames) % group_frames == 0, (len(frames), len(times_s))
        unit = self._merge * self._patch
        height, width = (
            (recipe.height, recipe.width)
            if recipe.height
            else fit(frames.shape[1], frames.shape[2], unit=unit, max_pixels=recipe.max_pixels)
        )
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device).permute(0, 3, 1, 2)
        pixels = (resize(pixels, height, width).float() / 255 - _MEAN) / _STD
        patches = patchify(pixels, patch=self._patch, merge=self._merge, group_frames=group_frames)
        groups = len(frames) // group_frames
        grid = torch.tensor([[groups, height // self._patch, width // self._patch]], device=self.device)
        seen = self._vision(patches.to(self.dtype), grid_thw=grid)
        rows, cols = height // unit, width // unit
        visual = seen.pooler_output.unflatten(0, (groups, rows * cols))

        embeds: list[Tensor] = []
        coords: list[Tensor] = []
        runs: list[Run] = []
        for group in range(groups):
            inside = times_s[group * group_frames : (group + 1) * group_frames]
            stamp = self._tokenizer(f"<{(inside[0] + inside[-1]) / 2:.1f} seconds>", add_special_tokens=False)
            for role, ids in ((Role.TIME, stamp["input_ids"]), (Role.MARKER, [self._start_id])):
                runs.append(_behind(runs, role, len(ids), group))
                text = self.embed_text(ids, position)
                embeds.append(text.embeds)
                coords.append(text.coords)
                position = text.end
            runs.append(_behind(runs, Role.VISUAL, rows * cols, group, rows, cols))
            embeds.append(visual[group].to(self.dtype))
            coords.append(_grid(rows, cols, position, self.device))
            position += max(rows, cols)
            runs.append(_behind(runs, Role.MARKER, 1, group))
            text = self.embed_text([self._end_id], position)
            embeds.append(text.embeds)
            coords.append(text.coords)
            position = text.end
        return Tokens(
            embeds=torch.cat(embeds),
            coords=torch.cat(coords),
            runs=tuple(runs),
            end=position,
            visual=visual.float().mean(1),
            extra={"deepstack": tuple(seen.deepstack_features)},
        )

    # --- the layers -------------------------------------------------------------------------------------------------

    def prefill(self, tokens: Tokens, level: Level, memory: View) -> KVBlock:
        trace = self.forward([Step(tokens=tokens, view=memory)], keep_kv=True)
        return KVBlock(
            keys=trace.keys[0],
            values=trace.values[0],
            coords=tokens.coords.float(),
            counts=torch.ones(len(tokens), dtype=torch.int32, device=self.device),
            runs=tokens.runs,
        )

    @torch.inference_mode()
    def forward(
        self,
        steps: Sequence[Step],
        *,
        keep_kv: bool = False,
        queries: frozenset[int] = frozenset(),
        until: int | None = None,
    ) -> Trace:
        sizes = [len(step.tokens) for step in steps]
        hidden = torch.cat([step.tokens.embeds for step in steps]).to(self.dtype)
        turn = [part[:, None] for part in self._turn(torch.cat([step.tokens.coords for step in steps]))]
        attend = Attention(
            [step.view for step in steps], sizes, sharing=self._spec.heads // self._spec.kv_heads, dtype=self.dtype
        )
        deepstack, visual = _deepstack(steps, self.device)
        kept_keys: list[Tensor] = []
        kept_values: list[Tensor] = []
        kept_queries: dict[int, Tensor] = {}
        depth = self._spec.layers if until is None else min(until, self._spec.layers)
        for index, layer in enumerate(self._text.layers[:depth]):
            attention = layer.self_attn
            normed = _normed(layer.input_layernorm, hidden)
            split = (len(hidden), -1, self._spec.head_dim)
            query = _normed(attention.q_norm, attention.q_proj(normed).view(split))
            key = _normed(attention.k_norm, attention.k_proj(normed).view(split))
            value = attention.v_proj(normed).view(split)
            if keep_kv:
                kept_keys.append(key.transpose(0, 1))
                kept_values.append(value.transpose(0, 1))
            if index in queries:
                kept_queries[index] = query.transpose(0, 1)
            both = _rotated(torch.cat((query, key), 1), *turn)
            query, key = both[:, : self._spec.heads], both[:, self._spec.heads :]
            hidden = hidden + attention.o_proj(attend(index, query, key, value, attention.scaling))
            hidden = hidden + layer.mlp(_normed(layer.post_attention_layernorm, hidden))
            if index < len(deepstack):
                hidden = hidden.index_add(0, visual, deepstack[index].to(hidden.dtype))
        if depth == self._spec.layers:
            hidden = _normed(self._text.norm, hidden)
        return Trace(
            hidden=hidden.split(sizes),
            keys=torch.stack(kept_keys).split(sizes, 2) if keep_kv else (),
            values=torch.stack(kept_values).split(sizes, 2) if keep_kv else (),
            queries=_per_step(kept_queries, sizes) if queries else (),
        )

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._model.lm_head(hidden)
        return logits.float()

    @torch.inference_mode()
    def rotate(self, keys: Tensor, coords: Tensor) -> Tensor:
        return _rotated(keys, *self._turn(coords))

    def _turn(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        """The interleaved M-RoPE of coords (entries, 3), (entries, head_dim) float32: what :func:`_rotated` takes."""
        angles = coords.float()[:, self._axis_of] * self._inv_freq
        cos, sin = angles.cos() * self._rope_scale, angles.sin() * self._rope_scale
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def _axis_of_frequency(frequencies: int, sections: Sequence[int], device: torch.device) -> Tensor:
    """Which axis turns which frequency: time everywhere, but height at 1, 4, 7, … and width at 2, 5, 8, … ."""
    axis = torch.zeros(frequencies, dtype=torch.long)
    for which in (1, 2):
        axis[which : sections[which] * 3 : 3] = which
    return axis.to(device)


def _normed(norm: Any, x: Tensor) -> Tensor:
    """A norm of the stock model in one operation instead of six: in a decode step they are a good part of all."""
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (…, head_dim), its two halves turned into each other: ``sin`` is negative in the first."""
    wide = x.float()
    return torch.addcmul(wide * cos, wide.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)


def _grid(rows: int, cols: int, position: float, device: torch.device) -> Tensor:
    """(rows·cols, 3): one temporal step, rows down, columns across, all from ``position``."""
    place = torch.cartesian_prod(torch.zeros(1), torch.arange(rows).float(), torch.arange(cols).float())
    return (place.view(-1, 3) + position).to(device)


def _behind(runs: Sequence[Run], role: Role, size: int, group: int, rows: int = 0, cols: int = 0) -> Run:
    start = runs[-1].stop if runs else 0
    return Run(role=role, start=start, stop=start + size, group=group, rows=rows, cols=cols)


def _deepstack(steps: Sequence[Step], device: torch.device) -> tuple[list[Tensor], Tensor]:
    """DeepStack features of all steps, per layer (visual, hidden), and the rows of the batch they are added to."""
    features: list[tuple[Tensor, ...]] = []
    rows: list[Tensor] = []
    offset = 0
    for step in steps:
        if "deepstack" in step.tokens.extra:
            features.append(step.tokens.extra["deepstack"])
            rows += [torch.arange(r.start, r.stop) + offset for r in step.tokens.runs if r.role is Role.VISUAL]
        offset += len(step.tokens)
    if not features:
        return [], torch.empty(0, dtype=torch.long, device=device)
    return [torch.cat(layer) for layer in zip(*features, strict=True)], torch.cat(rows).to(device)


def _per_step(queries: Mapping[int, Tensor], sizes: list[int]) -> tuple[Mapping[int, Tensor], ...]:
    split = {layer: query.split(sizes, 1) for layer, query in queries.items()}
    return tuple({layer: parts[step] for layer, parts in split.items()} for step in range(len(sizes)))


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def load(
    path: Path, *, device: torch.device, dtype: torch.dtype, weights: str, preferred: Mapping[str, Any]
) -> Qwen3VL:
    """Loads a checkpoint folder of the family through transformers, without network."""
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # what is shown while a model loads is the caller's to choose
    try:
        model = Qwen3VLForConditionalGeneration.from_pretrained(path, dtype=dtype, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    finally:
        if bars:
            logging.enable_progress_bar()
    return Qwen3VL(model.eval().to(device), tokenizer, weights=weights, preferred=preferred)
