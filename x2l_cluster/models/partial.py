"""Attention over a part of what is seen, with the mass of that part, and two such parts put together.

The fused kernels compute that mass anyway (the logarithm of the softmax denominator) and torch has no public name for
them that returns it, so they are called by the names its dispatcher gives them; elsewhere it is written out.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

Partial = tuple[Tensor, Tensor]
"""What was seen, (batch, heads, rows, head_dim), and its mass, (batch, heads, rows) float32: the log of the sum of the
exponentials of the scores."""

_ON_CPU: Final = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_ON_GPU: Final = torch.ops.aten._scaled_dot_product_efficient_attention.default
_ALIGNED: Final = 16
"""Rows of masks begin at multiples of so many elements for the kernel of a GPU."""


def partial(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Partial:
    """Softmax attention.

    Args:
        queries: (batch, heads, rows, head_dim).
        keys, values: (batch, heads, seen, head_dim).
        mask: additive, broadcastable to (batch, heads, rows, seen), of the queries' dtype, or None. Some entry is seen
            in every row.
    """
    if queries.is_cpu:
        return _ON_CPU(queries, keys, values, attn_mask=mask, scale=scale)  # type: ignore[no-any-return]
    return (_on_gpu if queries.is_cuda else written_out)(queries, keys, values, mask, scale)


def _on_gpu(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Partial:
    rows, seen = queries.shape[2], keys.shape[2]
    if mask is not None:
        mask = F.pad(mask, (0, -seen % _ALIGNED))[..., :seen].expand(*queries.shape[:3], seen)
    out, mass, *_ = _ON_GPU(queries, keys, values, mask, True, scale=scale)
    return out, mass[..., :rows]


def written_out(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Partial:
    """The same in plain operations, in float32."""
    scores = queries.float() @ keys.float().transpose(-1, -2) * scale
    if mask is not None:
        scores = scores + mask
    mass = scores.logsumexp(-1)
    return ((scores - mass[..., None]).exp() @ values.float()).to(queries.dtype), mass


def merged(one: Partial, other: Partial) -> Tensor:
    """Attention over both parts, (batch, heads, rows, head_dim)."""
    share = torch.sigmoid(one[1] - other[1])[..., None]
    return torch.lerp(other[0], one[0], share.to(one[0].dtype))
