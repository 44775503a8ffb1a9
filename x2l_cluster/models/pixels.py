"""Frames to patches in torch, on the device, without an image library; equal to the stock processors (tested)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def fit(height: int, width: int, *, unit: int, max_pixels: int) -> tuple[int, int]:
    """The size nearest to ``height`` by ``width`` that is a multiple of ``unit`` and holds at most ``max_pixels``.

    Small frames are not enlarged beyond one unit a side. Source of the rounding rule: transformers' ``smart_resize``.
    """
    fitted = [max(unit, round(side / unit) * unit) for side in (height, width)]
    if fitted[0] * fitted[1] > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        fitted = [max(unit, math.floor(side / shrink / unit) * unit) for side in (height, width)]
    return fitted[0], fitted[1]


def resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialiasing; uint8 (n, 3, h, w) → uint8 (n, 3, height, width)."""
    if frames.shape[-2:] == (height, width):
        return frames
    if frames.device.type == "cpu":
        # The native uint8 path is both the fast one and the one the stock processors take.
        return F.interpolate(frames, size=(height, width), mode="bicubic", antialias=True)
    scaled = F.interpolate(frames.float(), size=(height, width), mode="bicubic", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8)


def patchify(pixels: Tensor, *, patch: int, merge: int, group_frames: int) -> Tensor:
    """(frames, 3, height, width) → (patches, 3 · group_frames · patch²), patches ordered cell of merge × merge by cell.

    Source of the order: transformers' Qwen2-VL and Qwen3-VL video processors.
    """
    frames, channels, height, width = pixels.shape
    grouped = pixels.view(
        frames // group_frames,
        group_frames,
        channels,
        height // (merge * patch),
        merge,
        patch,
        width // (merge * patch),
        merge,
        patch,
    )
    return grouped.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, channels * group_frames * patch * patch)
