"""Backgrounds: procedural textures by number, and frames of real footage."""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

TEXTURE = 128  # samples a side
# Texture numbers below are for training; evaluation draws from above, where two more families are in use.
TRAIN_TEXTURES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Footage:
    """Square frames of a real clip, ``frames (n, 3, 128, 128)`` uint8 at ``fps``; shown in a loop."""

    frames: torch.Tensor
    fps: float


@functools.lru_cache(maxsize=256)
def texture(number: int) -> torch.Tensor:
    """Texture ``number`` as uint8 ``(3, 128, 128)``; the same on every machine."""
    rng = random.Random(f"texture/{number}")
    families = ["gradient", "radial", "cloud", "plaid", "stripes", "blocks", "noise", "plain"]
    if number >= TRAIN_TEXTURES:
        families += ["checker", "cells"]
    field = _field(rng.choice(families), rng)
    low, high = ([rng.random() for _ in range(3)] for _ in range(2))
    mix = field[None] * (torch.tensor(high) - torch.tensor(low)).view(3, 1, 1) + torch.tensor(low).view(3, 1, 1)
    grain = rng.choice([0.0, 0.0, 0.03, 0.08])
    if grain:
        mix = mix + grain * _normal(rng, 3, TEXTURE, TEXTURE)
    return (mix.clamp(0, 1) * 255).round().to(torch.uint8)


def _normal(rng: random.Random, *shape: int) -> torch.Tensor:
    numbers = np.random.Generator(np.random.PCG64(rng.getrandbits(60))).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(numbers)


def _field(family: str, rng: random.Random) -> torch.Tensor:  # noqa: PLR0911 - one formula a family
    """One channel ``(128, 128)`` in 0..1."""
    axis = (torch.arange(TEXTURE) + 0.5) / TEXTURE
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    turn = rng.uniform(0, 2 * math.pi)
    along = (x - 0.5) * math.cos(turn) + (y - 0.5) * math.sin(turn)
    across = (y - 0.5) * math.cos(turn) - (x - 0.5) * math.sin(turn)
    if family == "gradient":
        return (along / 1.4 + 0.5).clamp(0, 1)
    if family == "radial":
        return (torch.hypot(x - rng.random(), y - rng.random()) * rng.uniform(0.7, 1.6)).clamp(0, 1)
    if family == "plaid":
        f, g = rng.uniform(2, 14), rng.uniform(2, 14)
        return 0.5 + 0.25 * torch.sin(2 * math.pi * f * along) + 0.25 * torch.sin(2 * math.pi * g * across)
    if family == "stripes":
        return (torch.sin(2 * math.pi * rng.uniform(2, 12) * along) * rng.uniform(1, 6) + 0.5).clamp(0, 1)
    if family == "plain":
        return torch.full_like(x, rng.random())
    if family == "noise":
        return (0.5 + rng.uniform(0.05, 0.2) * _normal(rng, TEXTURE, TEXTURE)).clamp(0, 1)
    if family == "blocks":
        n = rng.choice([4, 8, 16])
        return F.interpolate(_normal(rng, 1, 1, n, n), size=TEXTURE, mode="nearest")[0, 0].mul(0.3).add(0.5).clamp(0, 1)
    if family == "checker":
        n = rng.choice([4, 6, 8, 12])
        return (((x * n).floor() + (y * n).floor()) % 2) * rng.uniform(0.4, 1.0)
    if family == "cells":
        points = torch.tensor([[rng.random(), rng.random()] for _ in range(24)])
        far = torch.cdist(torch.stack([x, y], -1).view(-1, 2), points).topk(2, largest=False).values
        return ((far[:, 1] - far[:, 0]) * 8).clamp(0, 1).view(TEXTURE, TEXTURE)
    total = torch.zeros(TEXTURE, TEXTURE)  # cloud: octaves of smooth noise
    for n, weight in ((3, 1.0), (6, 0.6), (12, 0.35), (24, 0.2)):
        total += weight * F.interpolate(
            _normal(rng, 1, 1, n, n), size=TEXTURE, mode="bicubic", align_corners=False
        )[0, 0]  # fmt: skip
    return (total * 0.22 + 0.5).clamp(0, 1)


def load_footage(path: str | Path, *, fps: float = 4.0, limit_s: float = 120.0) -> Footage:
    """Decode a clip to square 128-pixel frames (centre crop), at most ``limit_s`` seconds of it.

    Raises ``ValueError`` if the file holds no readable frame.
    """
    import av

    frames: list[torch.Tensor] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        due = 0.0
        for frame in container.decode(stream):
            if frame.time is None or frame.time + 1e-6 < due:
                continue
            if due > limit_s:
                break
            due += 1 / fps
            image = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            side = min(image.shape[1:])
            top, left = (image.shape[1] - side) // 2, (image.shape[2] - side) // 2
            square = image[:, top : top + side, left : left + side].float()[None]
            small = F.interpolate(square, size=(TEXTURE, TEXTURE), mode="bilinear", antialias=True)
            frames.append(small[0].round().clamp(0, 255).to(torch.uint8))
    if not frames:
        raise ValueError(f"{path}: no readable video frame; give a clip that plays")
    return Footage(frames=torch.stack(frames), fps=fps)
