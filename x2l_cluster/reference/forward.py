"""The training forward: Qwen3-VL's own weights, all chunks and all questions of a batch at once, level by level.

Written over a plain ``{name: tensor}`` of a ``Qwen3VLForConditionalGeneration`` state dict, so that one function
serves fp32 master weights, their bf16 copies, and tests. Equal to the stock forward where the masks are
(tests/unit/test_reference_forward.py). What is ours: layers run over all chunks in parallel, keys and values are
pooled before RoPE, and every question sees each chunk in the state chosen for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from x2l_cluster.reference.layout import Layout, chunk_mask, pool_grid, question_mask

Weights = Mapping[str, torch.Tensor]
TEXT, VISION = "model.language_model.", "model.visual."


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of a Qwen3-VL config that the forward needs."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    theta: float
    sections: tuple[int, ...]
    depth: int
    vision_heads: int
    vision_theta: float
    deepstack: tuple[int, ...]
    patch: int
    merge: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        text, vision = config.text_config, config.vision_config
        rope = text.rope_parameters
        vision_rope = getattr(vision, "rope_parameters", None) or {}
        return cls(
            layers=text.num_hidden_layers, heads=text.num_attention_heads, kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim, eps=text.rms_norm_eps, theta=rope["rope_theta"],
            sections=tuple(rope["mrope_section"]), depth=vision.depth, vision_heads=vision.num_heads,
            vision_theta=vision_rope.get("rope_theta", 10_000.0), deepstack=tuple(vision.deepstack_visual_indexes),
            patch=vision.patch_size, merge=vision.spatial_merge_size,
        )  # fmt: skip


def rotation(coords: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin ``(n, head_dim)`` at ``coords (3, n)`` (fractions allowed): interleaved M-RoPE."""
    half = shape.head_dim // 2
    inverse = 1.0 / shape.theta ** (torch.arange(half, device=coords.device, dtype=torch.float32) / half)
    angles = coords.float()[..., None] * inverse
    mixed = angles[0].clone()
    for axis in (1, 2):
        index = slice(axis, shape.sections[axis] * 3, 3)
        mixed[:, index] = angles[axis][:, index]
    both = torch.cat([mixed, mixed], -1)
    return both.cos(), both.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE of ``x (batch, n, heads, head_dim)`` with ``cos, sin (n, head_dim)``."""
    first, second = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]


# --- vision ------------------------------------------------------------------------------------------------------


def patchify(frames: torch.Tensor, patch: int, merge: int) -> torch.Tensor:
    """``(G, 2, 3, H, W)`` normalised → ``(G, patches, 3*2*patch*patch)`` in the stock merge order."""
    g, t, ch, h, w = frames.shape
    blocks = frames.reshape(g, t, ch, h // patch // merge, merge, patch, w // patch // merge, merge, patch)
    return blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(g, (h // patch) * (w // patch), ch * t * patch * patch)


def vision(w: Weights, shape: Shape, patches: torch.Tensor, side: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The vision tower over groups as a batch: ``patches (G, side*side, dim)`` → visual tokens ``(G, n, width)``
    and the DeepStack features. The learned position grid must be ``side x side`` (no interpolation)."""
    v = VISION
    order = torch.arange(side * side, device=patches.device).view(side // shape.merge, shape.merge, side // shape.merge,
                                                                   shape.merge).transpose(1, 2).flatten()  # fmt: skip
    table = w[v + "pos_embed.weight"]
    assert len(table) == side * side, "the learned grid and the frame's grid differ"
    kernel = w[v + "patch_embed.proj.weight"]
    x = F.linear(patches, kernel.flatten(1), w[v + "patch_embed.proj.bias"]) + table[order]
    head = x.shape[-1] // shape.vision_heads
    inverse = 1.0 / shape.vision_theta ** (
        torch.arange(0, head // 2, 2, device=x.device, dtype=torch.float32) / (head // 2)
    )
    angles = torch.cat([(order // side)[:, None] * inverse, (order % side)[:, None] * inverse], -1)
    angles = torch.cat([angles, angles], -1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    g, n, d = x.shape
    deep = []
    for i in range(shape.depth):
        p = f"{v}blocks.{i}."
        y = F.layer_norm(x, (d,), w[p + "norm1.weight"], w[p + "norm1.bias"], 1e-6)
        qkv = F.linear(y, w[p + "attn.qkv.weight"], w[p + "attn.qkv.bias"]).view(g, n, 3, shape.vision_heads, head)
        q, k, value = qkv.unbind(2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), value.transpose(1, 2))
        x = x + F.linear(y.transpose(1, 2).reshape(g, n, d), w[p + "attn.proj.weight"], w[p + "attn.proj.bias"])
        y = F.layer_norm(x, (d,), w[p + "norm2.weight"], w[p + "norm2.bias"], 1e-6)
        y = F.gelu(F.linear(y, w[p + "mlp.linear_fc1.weight"], w[p + "mlp.linear_fc1.bias"]), approximate="tanh")
        x = x + F.linear(y, w[p + "mlp.linear_fc2.weight"], w[p + "mlp.linear_fc2.bias"])
        if i in shape.deepstack:
            deep.append(_merge(w, f"{v}deepstack_merger_list.{shape.deepstack.index(i)}.", x, shape.merge, after=True))
    return _merge(w, v + "merger.", x, shape.merge, after=False), deep


def _merge(w: Weights, p: str, x: torch.Tensor, merge: int, *, after: bool) -> torch.Tensor:
    g, n, d = x.shape
    wide = (g, n // merge**2, d * merge**2)
    if after:
        x = x.reshape(wide)
    x = F.layer_norm(x, (x.shape[-1],), w[p + "norm.weight"], w[p + "norm.bias"], 1e-6).reshape(wide)
    x = F.gelu(F.linear(x, w[p + "linear_fc1.weight"], w[p + "linear_fc1.bias"]))
    return F.linear(x, w[p + "linear_fc2.weight"], w[p + "linear_fc2.bias"])


# --- text --------------------------------------------------------------------------------------------------------


def _qkv(y: torch.Tensor, wq: torch.Tensor, wk: torch.Tensor, wv: torch.Tensor, nq: torch.Tensor, nk: torch.Tensor,
         cos: torch.Tensor, sin: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Rotated queries, normed keys before RoPE, rotated keys, values; all ``(B, n, heads, head_dim)``."""
    b, n, _ = y.shape
    d = nq.shape[0]
    q = F.rms_norm(F.linear(y, wq).view(b, n, -1, d), (d,), nq, eps)
    k = F.rms_norm(F.linear(y, wk).view(b, n, -1, d), (d,), nk, eps)
    value = F.linear(y, wv).view(b, n, -1, d)
    return rotate(q, cos, sin), k, rotate(k, cos, sin), value


def _mlp(x: torch.Tensor, norm: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor,
         eps: float) -> torch.Tensor:  # fmt: skip
    y = F.rms_norm(x, (x.shape[-1],), norm, eps)
    return x + F.linear(F.silu(F.linear(y, gate)) * F.linear(y, up), down)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, causal: bool = False
) -> torch.Tensor:
    """Grouped-query attention over ``(batch, n, heads, head_dim)``; returns ``(batch, n, heads*head_dim)``."""
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, is_causal=causal, enable_gqa=True
    )
    return out.transpose(1, 2).flatten(2)


def _float_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask whose rows start aligned (last dimension padded to a multiple of 8 by the caller)."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def _pad8(mask: torch.Tensor, keys: int) -> tuple[torch.Tensor, int]:
    extra = -keys % 8
    return (F.pad(mask, (0, extra)) if extra else mask), extra


def text(  # noqa: PLR0915 - the layer loop reads best in one piece
    w: Weights,
    shape: Shape,
    layout: Layout,
    visual: torch.Tensor,
    deep: list[torch.Tensor],
    question_ids: torch.Tensor,
    states: torch.Tensor,
    *,
    causal: bool = False,
    tap: int | None = None,
    qkv: Callable[..., tuple[torch.Tensor, ...]] = _qkv,
    mlp: Callable[..., torch.Tensor] = _mlp,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Hidden states of the questions ``(B, Q, L, width)`` after the final norm.

    ``visual (B, G, n, width)`` and ``deep`` come from the vision tower; ``question_ids (B, Q, L)`` are padded at
    their ends; ``states (B, Q, C)`` says in which state each question sees each chunk. With ``causal`` the video is
    one ordinary causal sequence (the stock forward) instead of chunks that see the coarse past. ``tap`` also
    returns the visual tokens' hidden states ``(B, G, n, width)`` after that layer.
    """
    b, nq, length = question_ids.shape
    c, s, p, g = layout.chunks, layout.slots, layout.prefix, layout.groups
    n_video = p + c * s
    n_own = nq * length
    embed = w[TEXT + "embed_tokens.weight"]
    where = layout.visual.flatten()
    video = F.embedding(layout.ids, embed).expand(b, -1, -1)
    video = video.index_copy(1, where, visual.flatten(1, 2).to(video.dtype))
    x = torch.cat([video, F.embedding(question_ids.view(b, n_own), embed)], 1)
    steps = torch.arange(length, device=x.device).repeat(nq) + layout.end
    coords = torch.cat([layout.positions, steps.expand(3, -1)], 1)
    cos, sin = (t.to(x.dtype) for t in rotation(coords, shape))
    pooled_at = [tuple(t.to(x.dtype) for t in rotation(xyz, shape))
                 for xyz in (layout.coords_fine, layout.coords_coarse, layout.coords_uniform)]  # fmt: skip

    ask = question_mask(layout, states, length)
    n_keys = ask.shape[-1]
    ask, ask_pad = _pad8(ask, n_keys)
    ask = _float_mask(ask, x.dtype)[:, None]
    packed = layout.valid.nonzero()[:, 0]
    stamps = layout.stamps.clamp(min=0).flatten()
    if not causal:
        own_mask = chunk_mask(layout)
        own_mask, own_pad = _pad8(own_mask, own_mask.shape[-1])
        own_mask = _float_mask(own_mask, x.dtype)
        own_mask = own_mask[None, :, None].expand(b, *own_mask.shape[:1], 1, *own_mask.shape[1:]).flatten(0, 1)

    tapped = None
    for i in range(shape.layers):
        a = f"{TEXT}layers.{i}."
        y = F.rms_norm(x, (x.shape[-1],), w[a + "input_layernorm.weight"], shape.eps)
        q, bare, k, v = qkv(
            y, w[a + "self_attn.q_proj.weight"], w[a + "self_attn.k_proj.weight"], w[a + "self_attn.v_proj.weight"],
            w[a + "self_attn.q_norm.weight"], w[a + "self_attn.k_norm.weight"], cos, sin, shape.eps,
        )  # fmt: skip
        # (B, kv, d, G, rows, cols) → pooled entries (B, entries, kv, d)
        grids = [t.index_select(1, where).view(b, g, layout.rows, layout.cols, *t.shape[2:]).permute(0, 4, 5, 1, 2, 3)
                 for t in (bare, v)]  # fmt: skip
        pools = []
        for (high, wide), (pc, ps) in zip(((1, 2), (layout.rows, layout.cols), (2, 2)), pooled_at, strict=True):
            pk, pv = (pool_grid(t, high, wide).flatten(3).permute(0, 3, 1, 2) for t in grids)
            pools.append((rotate(pk, pc, ps), pv))
        parts = []
        if causal:
            seq = _attend(q[:, packed], k[:, packed], v[:, packed], None, causal=True)
            parts.append(
                torch.zeros(b, n_video, seq.shape[-1], dtype=seq.dtype, device=x.device).index_copy(1, packed, seq)
            )
        else:
            parts.append(_attend(q[:, :p], k[:, :p], v[:, :p], None, causal=True))
            past = [torch.cat([t[:, :p], pool, t[:, stamps]], 1) for t, pool in ((k, pools[1][0]), (v, pools[1][1]))]
            recent = [t[:, p:n_video].reshape(b, c, s, *t.shape[2:]) for t in (k, v)]
            keys = [torch.cat([t[:, None].expand(b, c, *t.shape[1:]), own], 2).flatten(0, 1)
                    for t, own in zip(past, recent, strict=True)]  # fmt: skip
            if own_pad:
                keys = [F.pad(t, (0, 0, 0, 0, 0, own_pad)) for t in keys]
            own_q = q[:, p:n_video].reshape(b * c, s, *q.shape[2:])
            parts.append(_attend(own_q, keys[0], keys[1], own_mask).view(b, c * s, -1))
        all_keys = [torch.cat([t[:, :n_video], *(pool[j] for pool in pools), t[:, n_video:]], 1)
                    for j, t in enumerate((k, v))]  # fmt: skip
        if ask_pad:
            all_keys = [F.pad(t, (0, 0, 0, 0, 0, ask_pad)) for t in all_keys]
        parts.append(_attend(q[:, n_video:], all_keys[0], all_keys[1], ask))
        x = x + F.linear(torch.cat(parts, 1), w[a + "self_attn.o_proj.weight"])
        x = mlp(x, w[a + "post_attention_layernorm.weight"], w[a + "mlp.gate_proj.weight"], w[a + "mlp.up_proj.weight"],
                w[a + "mlp.down_proj.weight"], shape.eps)  # fmt: skip
        if i < len(deep):
            x = x.index_add(1, where, deep[i].flatten(1, 2).to(x.dtype))
        if tap == i:
            tapped = x.index_select(1, where).view(b, g, layout.rows * layout.cols, -1)
    hidden = F.rms_norm(x[:, n_video:], (x.shape[-1],), w[TEXT + "norm.weight"], shape.eps)
    return hidden.view(b, nq, length, -1), tapped
