"""How a scene looks: every visual choice of a scene as one row of numbers, drawn from the scene's seed."""

from __future__ import annotations

import math
import random

from x2l_cluster.needles.atlas import EVAL_FONTS, TRAIN_FONTS
from x2l_cluster.needles.backgrounds import TRAIN_TEXTURES
from x2l_cluster.needles.script import CODE_LENGTH, LETTERS, SHAPES, Scene, Split

RGB = {
    "red": (0.86, 0.12, 0.12), "green": (0.10, 0.66, 0.20), "blue": (0.13, 0.25, 0.90),
    "yellow": (0.96, 0.86, 0.10), "pink": (0.95, 0.35, 0.78), "white": (0.97, 0.97, 0.97),
    "cyan": (0.15, 0.82, 0.86),
}  # fmt: skip

# Columns of a row. Lengths are in frame sides, times in seconds since the scene began, colours 0..1.
FIELDS = (
    "texture", "use_footage", "footage_start", "bg_zoom", "bg_cos", "bg_sin", "bg_x", "bg_y", "bg_vx", "bg_vy",
    "bg_gain", "bg_lift",
    "shape", "m_x", "m_y", "m_ax", "m_ay", "m_fx", "m_fy", "m_phase", "m_size", "m_angle", "m_spin", "m_outline",
    "m_r", "m_g", "m_b", "m_line",
    "code_from", "code_to", "c0", "c1", "c2", "c3", "font_a", "font_b", "font_mix", "c_size", "c_pitch", "c_x", "c_y",
    "c_vx", "c_angle", "c_weight", "c_outline", "c_plate", "c_r", "c_g", "c_b", "c_lr", "c_lg", "c_lb", "c_stretch",
)  # fmt: skip
COLUMN = {name: i for i, name in enumerate(FIELDS)}


def look(scene: Scene, split: Split) -> list[float]:
    """The row of a scene. Marker and code keep to different halves, so neither hides the other."""
    rng = random.Random(scene.seed)
    uniform = rng.uniform
    row = dict.fromkeys(FIELDS, 0.0)
    moving = rng.random() < 0.5
    turn = uniform(-math.pi, math.pi) if rng.random() < 0.5 else 0.0
    zoom = uniform(0.35, 1.0)
    row.update(
        texture=rng.randrange(TRAIN_TEXTURES) + (0 if split == "train" else TRAIN_TEXTURES),
        use_footage=float(rng.random() < 0.45), footage_start=uniform(0, 3600.0), bg_zoom=zoom,
        bg_cos=math.cos(turn) * zoom, bg_sin=math.sin(turn) * zoom, bg_x=uniform(-0.5, 0.5), bg_y=uniform(-0.5, 0.5),
        bg_vx=uniform(-0.08, 0.08) * moving, bg_vy=uniform(-0.08, 0.08) * moving,
        bg_gain=uniform(0.6, 1.0), bg_lift=uniform(0.0, 0.2),
    )  # fmt: skip
    on_top = rng.random() < 0.5
    if scene.marker is not None:
        size = uniform(0.17, 0.32)
        drift = uniform(0.0, 1.0) * (rng.random() < 0.6)
        room_y = 0.5 - size / 2 - 0.02  # stays inside its half
        centre = size / 2 + 0.01 + uniform(0.15, 0.85) * max(0.0, 0.5 - size - 0.02)
        x = uniform(size / 2 + 0.01, 1 - size / 2 - 0.01)
        jitter = [uniform(-0.06, 0.06) for _ in range(3)]
        r, g, b = (min(1.0, max(0.0, c + j)) for c, j in zip(RGB[scene.marker.color], jitter, strict=True))
        luma = 0.3 * r + 0.59 * g + 0.11 * b
        row.update(
            shape=SHAPES.index(scene.marker.shape), m_x=x, m_y=centre if on_top else 1 - centre,
            m_ax=drift * min(x, 1 - x, 0.35), m_ay=drift * min(0.06, max(0.0, room_y - centre)),
            m_fx=uniform(0.02, 0.15), m_fy=uniform(0.02, 0.15), m_phase=uniform(0, 2 * math.pi), m_size=size,
            m_angle=uniform(-0.25, 0.25), m_spin=uniform(-0.1, 0.1) * (rng.random() < 0.2),
            m_outline=uniform(0.02, 0.06), m_r=r, m_g=g, m_b=b, m_line=0.02 if luma > 0.45 else 0.98,
        )  # fmt: skip
    if scene.code is not None:
        assert len(scene.code.text) == CODE_LENGTH
        fonts = range(len(TRAIN_FONTS)) if split == "train" else range(len(TRAIN_FONTS), len(TRAIN_FONTS + EVAL_FONTS))
        size = uniform(0.20, 0.29)
        pitch = size * uniform(0.80, 0.98)
        stretch = uniform(0.85, 1.15) if split == "train" else 1.0
        half_width = (1.5 * pitch + 0.42 * size) * stretch
        angle = uniform(-0.10, 0.10) * (rng.random() < 0.6)
        half_height = 0.36 * size + abs(math.sin(angle)) * half_width
        speed = uniform(-0.02, 0.02) * (rng.random() < 0.3)
        side = half_width + 2.5 * abs(speed)
        x = uniform(side, 1 - side) if side < 0.5 else 0.5
        low = half_height + 0.01
        y = uniform(low, max(low, 0.5 - half_height + 0.02))
        dark = rng.random() < 0.5
        ink = [uniform(0.0, 0.25) for _ in range(3)] if dark else [uniform(0.8, 1.0) for _ in range(3)]
        if rng.random() < 0.3:  # tinted ink
            ink[rng.randrange(3)] = uniform(0.3, 0.5) if dark else uniform(0.4, 0.8)
        line = [uniform(0.8, 1.0) if dark else uniform(0.0, 0.2)] * 3
        letters = [float(LETTERS.index(c)) for c in scene.code.text]
        mixed = split == "train" and rng.random() < 0.5
        row.update(
            code_from=scene.code.start_s - scene.start_s, code_to=scene.code.end_s - scene.start_s,
            c0=letters[0], c1=letters[1], c2=letters[2], c3=letters[3],
            font_a=rng.choice(fonts), font_b=rng.choice(fonts), font_mix=uniform(0.0, 1.0) * mixed, c_size=size,
            c_pitch=pitch, c_x=x, c_y=1 - y if on_top else y, c_angle=angle,
            c_weight=uniform(-0.012, 0.018) if split == "train" else uniform(0.0, 0.01),
            c_outline=uniform(0.025, 0.07), c_plate=uniform(0.5, 1.0) * (rng.random() < 0.45), c_stretch=stretch,
            c_r=ink[0], c_g=ink[1], c_b=ink[2], c_lr=line[0], c_lg=line[1], c_lb=line[2],
            c_vx=speed if side < 0.5 else 0.0,
        )  # fmt: skip
    return [float(row[name]) for name in FIELDS]
