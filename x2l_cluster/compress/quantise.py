"""Keys and values in small integers.

Keys have a few channels with large values, the same at every entry, so they are scaled per channel over a stretch of
entries; values have no such channels and are scaled per token (KIVI, arXiv 2402.02750, §3). Both asymmetric.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from x2l_cluster.errors import NonFinite
from x2l_cluster.kv.block import KVBlock, Quantised
from x2l_cluster.types import Quant

KEY_GROUP = {8: 64, 4: 32}
"""Entries that share a scale, by bits."""

VALUE_GROUP = {8: 128, 4: 32}
"""Channels that share a scale, by bits; at most the head."""

_HALF_MAX = 65504.0
_HALF_SMALL = 2.0**-10
"""Below this peak, the steps of an 8-bit tensor would be subnormal in float16."""
_LIMIT = 2.0**126
"""Beyond this, ``code * scale`` could overflow float32."""


def quantise(block: KVBlock, quant: Quant, kv_dtype: torch.dtype | str) -> KVBlock:
    """A dense block as it is stored: quantised, or, for ``Quant.NONE``, cast to ``kv_dtype``.

    For each element ``|x − x̂| ≤ scale / 2`` of its stored scale, plus float32 rounding. Equal input gives equal
    bytes. Raises NonFinite for NaN, infinity, and what is too large for the storage form.
    """
    assert isinstance(block.keys, Tensor), "only dense blocks are quantised"
    assert isinstance(block.values, Tensor), "only dense blocks are quantised"
    if quant is Quant.NONE:
        dtype = getattr(torch, kv_dtype) if isinstance(kv_dtype, str) else kv_dtype
        limit = torch.finfo(dtype).max
        for name, tensor in (("keys", block.keys), ("values", block.values)):
            _peak(name, tensor, limit)
        return replace(block, keys=block.keys.to(dtype), values=block.values.to(dtype))
    value_group = min(VALUE_GROUP[quant.bits], block.values.shape[3])
    return replace(
        block,
        keys=quantise_tensor(block.keys, bits=quant.bits, axis=-2, group=KEY_GROUP[quant.bits], name="keys"),
        values=quantise_tensor(block.values, bits=quant.bits, axis=-1, group=value_group, name="values"),
    )


def quantise_tensor(x: Tensor, *, bits: int, axis: int, group: int, name: str = "tensor") -> Quantised:
    """x (layers, kv_heads, entries, head_dim), any float dtype → ``low + code * scale`` in groups along ``axis``.

    ``low`` is rounded down and ``scale`` up to what is stored, so that the top code always reaches the maximum: no
    element is clipped, and constants keep their value whatever their size. Parameters are float16, or float32 when
    the tensor as a whole is too large or too small for it.
    """
    assert axis in (-2, -1), axis
    assert bits in (4, 8), bits
    assert x.shape[-1] % (8 // bits) == 0, x.shape
    peak = _peak(name, x, _LIMIT)
    half = peak == 0 or _HALF_SMALL <= peak <= _HALF_MAX
    top = 2**bits - 1
    size = x.shape[axis]
    groups = -(-size // group)
    x = x.float()
    if groups * group > size:  # repeating the last element changes neither minimum nor maximum
        last = x.narrow(axis, size - 1, 1)
        x = torch.cat([x, last.expand(*_sized(x.shape, axis, groups * group - size))], dim=axis)
    cells = x.reshape(*x.shape[:axis], groups, group, *_after(x.shape, axis))
    within = axis  # counted from the right, the elements of a group stay on the same axis
    low, high = cells.amin(within, keepdim=True), cells.amax(within, keepdim=True)
    if half:
        low_stored = _half_below(low)
        scale_stored = _half_above((high - low_stored.float()) / top)
    else:
        low_stored, scale_stored = low, (high - low) / top
    scale = scale_stored.float()
    steps = (cells - low_stored.float()) / torch.where(scale > 0, scale, torch.ones_like(scale))
    codes = steps.round_().clamp_(0, top).to(torch.uint8).flatten(axis - 1, axis).narrow(axis, 0, size)
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return Quantised(
        codes=codes.contiguous(),
        scale=scale_stored.squeeze(within).contiguous(),
        low=low_stored.squeeze(within).contiguous(),
        bits=bits,
        axis=axis,
        group=group,
    )


def _after(shape: torch.Size, axis: int) -> torch.Size:
    return shape[axis + 1 :] if axis < -1 else torch.Size()


def _sized(shape: torch.Size, axis: int, size: int) -> list[int]:
    sizes = list(shape)
    sizes[axis] = size
    return sizes


def _peak(name: str, x: Tensor, limit: float) -> float:
    """The largest magnitude; the only place where the host waits for the device."""
    peak = float(x.abs().amax()) if x.numel() else 0.0
    if not math.isfinite(peak):
        raise NonFinite(
            f"the model gave {name} that are not finite: check its weights, or run it in float32 or bfloat16"
        )
    if peak > limit:
        raise NonFinite(f"the model gave {name} of {peak:.3g}, more than can be stored: set a wider kv_dtype")
    return peak


def _half_below(x: Tensor) -> Tensor:
    """The largest float16 that is not above x (float32, at least −65504)."""
    near = x.half()
    bits = near.view(torch.int16)  # sign and magnitude: the next one down is bit arithmetic
    below = torch.where(bits > 0, bits - 1, torch.where(bits == 0, torch.full_like(bits, -32767), bits + 1))
    return torch.where(near.float() > x, below.to(torch.int16), bits).view(torch.float16)


def _half_above(x: Tensor) -> Tensor:
    """The smallest float16 that is not below x (float32, from 0 to 65504)."""
    near = x.half()
    bits = near.view(torch.int16)
    return torch.where(near.float() < x, bits + 1, bits).view(torch.float16)
