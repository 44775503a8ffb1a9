"""A script as tensors: the looks of its frames, and what the auxiliary heads must see in them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from x2l_cluster.needles.backgrounds import TRAIN_TEXTURES
from x2l_cluster.needles.looks import COLUMN, look
from x2l_cluster.needles.script import CODE_LENGTH, COLORS, LETTERS, SHAPES, Scene, Script

GRID = 4  # visual tokens a side


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A stretch of footage in the bank of backgrounds."""

    start: int
    frames: int
    fps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One video of F frames and G groups.

    ``rows (F, fields)`` looks, ``since (F,)`` seconds since the scene began, ``where (F,)`` background index;
    ``letters (G, 16, 4)`` letter k of the code whose centre is in that cell (0: none), ``marker (G, 2)`` colour and
    shape (0: none, -100: two scenes in one group), ``begins (G,)`` whether a scene begins.
    """

    rows: torch.Tensor
    since: torch.Tensor
    where: torch.Tensor
    letters: torch.Tensor
    marker: torch.Tensor
    begins: torch.Tensor


def see_script(script: Script, times: list[float], clips: list[Clip]) -> Seen:
    """What there is to see at ``times`` (two frames a group)."""
    looks = torch.tensor([look(s, script.split) for s in script.scenes])
    index = np.searchsorted(np.array([s.end_s for s in script.scenes[:-1]]), np.array(times), side="right")
    begun = np.array([s.start_s for s in script.scenes])
    since = torch.from_numpy((np.array(times) - begun[index]).astype(np.float32))
    letters = torch.zeros(len(times) // 2, GRID * GRID, CODE_LENGTH, dtype=torch.long)
    for scene, row in zip(script.scenes, looks, strict=True):
        _mark_letters(letters, scene, row, times)
    marker, begins = _mark_scenes(script, index)
    where = _backgrounds(script, looks, index, since, clips)
    return Seen(rows=looks[index], since=since, where=where, letters=letters, marker=marker, begins=begins)


def _backgrounds(
    script: Script, looks: torch.Tensor, index: np.ndarray, since: torch.Tensor, clips: list[Clip]
) -> torch.Tensor:
    where = looks[index][:, COLUMN["texture"]].long() - (TRAIN_TEXTURES if script.split == "eval" else 0)
    for i, row in enumerate(looks if clips else []):
        if row[COLUMN["use_footage"]] > 0.5:
            start = float(row[COLUMN["footage_start"]])
            clip = clips[int(start * 1000) % len(clips)]
            here = torch.from_numpy(index == i)
            where[here] = TRAIN_TEXTURES + clip.start + ((since[here] + start) * clip.fps).long() % clip.frames
    return where


def _mark_scenes(script: Script, index: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    groups = len(index) // 2
    marker = torch.zeros(groups, 2, dtype=torch.long)
    begins = torch.zeros(groups, dtype=torch.long)
    before = -1
    for g in range(groups):
        a, b = int(index[2 * g]), int(index[2 * g + 1])
        first, second = script.scenes[a].marker, script.scenes[b].marker
        begins[g], before = int(b != before), b
        if first != second:
            marker[g] = -100
        elif first is not None:
            marker[g] = torch.tensor([COLORS.index(first.color) + 1, SHAPES.index(first.shape) + 1])
    return marker, begins


def _mark_letters(letters: torch.Tensor, scene: Scene, row: torch.Tensor, times: list[float]) -> None:
    if scene.code is None:
        return
    c = {name: float(row[k]) for name, k in COLUMN.items()}
    for g in range(len(times) // 2):
        shown = [t for t in times[2 * g : 2 * g + 2] if scene.code.start_s <= t < scene.code.end_s]
        if not shown:
            continue
        middle = (c["code_from"] + c["code_to"]) / 2
        x0 = c["c_x"] + c["c_vx"] * (shown[0] - scene.start_s - middle)
        for k, letter in enumerate(scene.code.text):
            along = (k - (CODE_LENGTH - 1) / 2) * c["c_pitch"] * c["c_stretch"]
            x, y = x0 + along * math.cos(c["c_angle"]), c["c_y"] + along * math.sin(c["c_angle"])
            down, right = (min(GRID - 1, max(0, int(v * GRID))) for v in (y, x))
            letters[g, down * GRID + right, k] = LETTERS.index(letter) + 1
