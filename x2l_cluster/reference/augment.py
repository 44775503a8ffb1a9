"""What a camera, a codec and a resize do to frames, at random strengths, on the training device."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F


def _per_video(
    gen: torch.Generator, videos: int, low: float, high: float, share: float, neutral: float
) -> torch.Tensor:
    """One value a video: uniform in [low, high) for ``share`` of them, else ``neutral``."""
    value = torch.rand(videos, generator=gen, device=gen.device) * (high - low) + low
    keep = torch.rand(videos, generator=gen, device=gen.device) < share
    return torch.where(keep, value, torch.full_like(value, neutral))


def _rows(
    size: int, change: Callable[[torch.Tensor], torch.Tensor], device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """The matrix of a linear, separable change of image rows. ``change`` maps ``(1, n, size)`` to itself.

    As matrices, resizing and blurring cost two small products instead of several passes over all pixels.
    """
    matrix: torch.Tensor = change(torch.eye(size)[None])[0].T.to(device, dtype)
    return matrix


def dct(size: int, block: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The matrix of an orthonormal cosine transform of every run of ``block`` pixels."""
    k = torch.arange(block, dtype=torch.float32)
    rows = torch.cos(math.pi / block * (k[None] + 0.5) * k[:, None]) * math.sqrt(2 / block)
    rows[0] /= math.sqrt(2)
    matrix: torch.Tensor = torch.block_diag(*[rows] * (size // block))
    return matrix.to(device, dtype)


def quantise(frames: torch.Tensor, step: torch.Tensor, block: int) -> torch.Tensor:
    """Block transform, coarse rounding, and back: ``step (n,)`` is the rounding step of middle frequencies."""
    size = frames.shape[-1]
    matrix = dct(size, block, frames.device, frames.dtype)
    k = torch.arange(block, device=frames.device, dtype=torch.float32)
    weight = (0.4 + 1.2 * (k[:, None] + k[None]) / block).repeat(size // block, size // block)
    steps = (step.float().view(-1, 1, 1, 1) * weight).to(frames.dtype)
    spectrum = matrix @ frames @ matrix.T
    spectrum = (spectrum / steps).round_().mul_(steps)
    return torch.matmul(matrix.T, spectrum) @ matrix


def _resize(x: torch.Tensor, size: int) -> torch.Tensor:
    """Antialiased resize of the last dimension of ``(1, n, size)``."""
    return F.interpolate(x[:, None], size=(x.shape[1], size), mode="bilinear", antialias=True)[:, 0]


def augment(frames: torch.Tensor, videos: int, seed: int) -> torch.Tensor:
    """``frames (videos*k, 3, size, size)`` in 0..1, each video under conditions of its own."""
    gen = torch.Generator(frames.device).manual_seed(seed)
    dice = torch.Generator().manual_seed(seed)
    roll = torch.rand(8, generator=dice).tolist()
    per = frames.shape[0] // videos
    dtype, size = frames.dtype, frames.shape[-1]

    def spread(low: float, high: float, share: float, neutral: float) -> torch.Tensor:
        value = _per_video(gen, videos, low, high, share, neutral)
        return value.repeat_interleave(per).view(-1, 1, 1, 1).to(dtype)

    gain, lift = spread(0.7, 1.25, 0.7, 1.0), spread(-0.1, 0.1, 0.7, 0.0)
    frames = (frames * gain + lift).clamp(0.0, 1.0)
    if roll[0] < 0.5:
        frames = (frames + 1e-3) ** spread(0.75, 1.35, 0.7, 1.0)
    if roll[1] < 0.6:  # chroma at half resolution, as 4:2:0 video has it
        luma = (frames * torch.tensor([0.299, 0.587, 0.114], device=frames.device, dtype=dtype).view(1, 3, 1, 1)).sum(
            1, True
        )
        half = _rows(size, lambda x: F.interpolate(F.avg_pool1d(x, 2), size=size, mode="linear"), frames.device, dtype)
        frames = luma + (half @ (frames - luma) @ half.T) * spread(0.8, 1.15, 0.5, 1.0)
    if roll[2] < 0.25:
        small = int(size * (0.6 + 0.35 * roll[3]))
        there = _rows(size, lambda x: _resize(_resize(x, small), size), frames.device, dtype)
        frames = there @ frames @ there.T
    blur = _rows(size, lambda x: F.avg_pool1d(x, 3, 1, 1, count_include_pad=False), frames.device, dtype)
    frames = torch.lerp(frames, blur @ frames @ blur.T, spread(-0.5, 1.0, 0.7, 0.0))
    if roll[4] < 0.55:
        block = 8 if roll[5] < 0.5 else 4
        step = _per_video(gen, videos, 0.01, 0.16 if block == 8 else 0.10, 0.8, 0.004).repeat_interleave(per)
        frames = quantise(frames, step, block)
    if roll[6] < 0.6:
        noise = torch.randn(frames.shape, generator=gen, device=frames.device, dtype=dtype)
        frames = torch.addcmul(frames, noise, spread(0.0, 0.06, 0.7, 0.0))
    return frames.clamp_(0.0, 1.0)
