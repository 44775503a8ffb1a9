"""From a script to pixels: one renderer in torch, the same on a CPU and a GPU, for training and for files."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from x2l_cluster.needles.atlas import CELL, REACH, Atlas, load_atlas
from x2l_cluster.needles.backgrounds import Footage, texture
from x2l_cluster.needles.looks import COLUMN, look
from x2l_cluster.needles.script import CODE_LENGTH, Script


def render(
    script: Script,
    times_s: Sequence[float],
    *,
    size: int = 128,
    device: str | torch.device = "cpu",
    footage: Footage | None = None,
    only_footage: bool = False,
) -> torch.Tensor:
    """The frames of ``script`` at ``times_s``: uint8 ``(n, size, size, 3)`` on ``device``.

    With ``footage``, about half of the scenes (all with ``only_footage``) lie over that clip instead of a texture.
    """
    rows = torch.tensor([look(scene, script.split) for scene in script.scenes])
    if footage is None:
        rows[:, COLUMN["use_footage"]] = 0.0
    elif only_footage:
        rows[:, COLUMN["use_footage"]] = 1.0
    scenes = [script.scene_at(t) for t in times_s]
    frame_rows = rows[[s.index for s in scenes]].to(device)
    since = torch.tensor([t - s.start_s for t, s in zip(times_s, scenes, strict=True)], device=device)
    bank = torch.stack([texture(int(n)) for n in rows[:, COLUMN["texture"]].tolist()]).to(device)
    where = torch.tensor([s.index for s in scenes], device=device)
    if footage is not None:
        clip = footage.frames.to(device)
        # With nothing but footage the clip plays on through the scenes, as in a real recording.
        clock = torch.tensor(list(times_s), device=device) if only_footage else (
            since + frame_rows[:, COLUMN["footage_start"]]
        )  # fmt: skip
        index = (clock * footage.fps).long() % len(clip) + len(bank)
        where = torch.where(frame_rows[:, COLUMN["use_footage"]] > 0.5, index, where)
        bank = torch.cat([bank, clip])
    atlas = load_atlas(str(torch.device(device)))
    out = torch.empty(len(scenes), size, size, 3, dtype=torch.uint8, device=device)
    step = 64 if torch.device(device).type == "cpu" else 1024
    for i in range(0, len(scenes), step):
        part = slice(i, i + step)
        frames = draw(frame_rows[part], since[part], bank, where[part], atlas, size, torch.float32)
        out[part] = (frames.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return out


def draw(
    rows: torch.Tensor,
    since_s: torch.Tensor,
    bank: torch.Tensor,
    where: torch.Tensor,
    atlas: Atlas,
    size: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Frames ``(n, 3, size, size)`` in 0..1.

    ``rows (n, fields)`` is each frame's scene look, ``since_s (n,)`` the time since its scene began, ``bank
    (k, 3, r, r)`` uint8 the backgrounds and ``where (n,)`` each frame's background in it.
    """
    c = {name: rows[:, i].view(-1, 1, 1) for name, i in COLUMN.items()}
    t = since_s.view(-1, 1, 1)
    axis = (torch.arange(size, device=rows.device, dtype=torch.float32) + 0.5) / size
    y, x = axis.view(1, -1, 1), axis.view(1, 1, -1)

    u, v = 2 * x - 1, 2 * y - 1
    # Everything that depends on a row or a column alone is summed before the one full-size addition.
    off_x = c["bg_x"] * (1 - c["bg_zoom"]) * 2 + c["bg_vx"] * t
    off_y = c["bg_y"] * (1 - c["bg_zoom"]) * 2 + c["bg_vy"] * t
    grid = _plane((u * c["bg_cos"] + off_x, -v * c["bg_sin"]), (u * c["bg_sin"] + off_y, v * c["bg_cos"]), dtype)
    frame = F.grid_sample(bank[where].to(dtype), grid, padding_mode="reflection", align_corners=False)
    frame = frame * (c["bg_gain"] / 255).to(dtype)[:, None] + c["bg_lift"].to(dtype)[:, None]

    frame = _draw_marker(frame, c, t, x, y, atlas, size, dtype)
    shown = ((since_s >= rows[:, COLUMN["code_from"]]) & (since_s < rows[:, COLUMN["code_to"]])).nonzero()[:, 0]
    if len(shown):
        some = {name: value[shown] for name, value in c.items()}
        frame = frame.index_copy(0, shown, _draw_code(frame[shown], some, t[shown], x, y, atlas, size, dtype))
    return frame


Columns = dict[str, torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]


def _plane(across: Pair, down: Pair, dtype: torch.dtype) -> torch.Tensor:
    """A sampling grid ``(n, h, w, 2)`` from its two coordinates, each a term by column and a term by row."""
    (ax, ay), (dx, dy) = across, down
    n, h, w = len(ax), ay.shape[1], ax.shape[2]
    grid = torch.empty(n, h, w, 2, dtype=dtype, device=ax.device)
    torch.add(ax.to(dtype), ay.to(dtype), out=grid[..., 0])
    torch.add(dx.to(dtype), dy.to(dtype), out=grid[..., 1])
    return grid


def marker_centre(c: Columns, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the marker's centre is ``t`` seconds into its scene, in frame sides."""
    turn = 2 * math.pi * t
    x = c["m_x"] + c["m_ax"] * torch.sin(c["m_fx"] * turn + c["m_phase"])
    return x, c["m_y"] + c["m_ay"] * torch.sin(c["m_fy"] * turn + c["m_phase"] * 1.7)


def code_x(c: Columns, t: torch.Tensor) -> torch.Tensor:
    """Where the code's centre is, sideways, ``t`` seconds into its scene."""
    return c["c_x"] + c["c_vx"] * (t - (c["code_from"] + c["code_to"]) / 2)


def _draw_marker(frame: torch.Tensor, c: Columns, t: torch.Tensor, x: torch.Tensor, y: torch.Tensor,
                 atlas: Atlas, size: int, dtype: torch.dtype) -> torch.Tensor:  # fmt: skip
    here = (c["m_size"][:, 0, 0] > 0).nonzero()[:, 0]
    if not len(here):
        return frame
    c = {k: v[here] for k, v in c.items() if k.startswith("m_") or k == "shape"}
    t = t[here]
    cx, cy = marker_centre(c, t)
    angle = c["m_angle"] + c["m_spin"] * t
    # The sprite's radius is 0.4 cells: a marker of m_size frame sides spans 0.8 cells.
    scale = 0.8 / c["m_size"]
    dx, dy = (x - cx) * scale * 2, (y - cy) * scale * 2
    cos, sin = torch.cos(angle), torch.sin(angle)
    shapes = atlas.shapes[c["shape"][:, 0, 0].long()][:, None].to(dtype)
    grid = _plane((dx * cos, dy * sin), (-dx * sin, dy * cos), dtype)
    field = F.grid_sample(shapes + REACH, grid, align_corners=False)[:, 0] - REACH  # outside: farthest away
    slope = size / scale
    colour = torch.stack([c["m_r"], c["m_g"], c["m_b"]], 1)
    drawn = _ink(frame[here], field, c["m_outline"], slope, c["m_line"][:, None].expand_as(colour), colour)
    return frame.index_copy(0, here, drawn)


def _draw_code(frame: torch.Tensor, c: Columns, t: torch.Tensor, x: torch.Tensor, y: torch.Tensor,
               atlas: Atlas, size: int, dtype: torch.dtype) -> torch.Tensor:  # fmt: skip
    dx, dy = x - code_x(c, t), y - c["c_y"]
    cos, sin = torch.cos(c["c_angle"]), torch.sin(c["c_angle"])
    along, across = (dx * cos + dy * sin) / c["c_stretch"], dy * cos - dx * sin
    place = (along / c["c_pitch"] + CODE_LENGTH / 2).floor().clamp(0, CODE_LENGTH - 1)
    su = (along - (place - (CODE_LENGTH - 1) / 2) * c["c_pitch"]) / c["c_size"]
    sv = across / c["c_size"]
    n = len(frame)
    codes = torch.cat([c["c0"], c["c1"], c["c2"], c["c3"]], 1).view(n, CODE_LENGTH).long()
    # Four glyphs side by side in one picture a frame, so that one grid_sample draws the whole code.
    both = [atlas.letters[c[f][:, 0, 0].long()[:, None].expand(n, CODE_LENGTH), codes] for f in ("font_a", "font_b")]
    glyphs = torch.lerp(both[0], both[1], c["font_mix"][..., None])
    strip = glyphs.permute(0, 2, 1, 3).reshape(n, 1, CELL, CODE_LENGTH * CELL).to(dtype)
    inside = 0.5 - 0.5 / CELL
    gx = (place + 0.5 + su.clamp(-inside, inside)) / CODE_LENGTH * 2 - 1
    grid = torch.stack([gx, sv * 2], -1).clamp(-2, 2).to(dtype)
    field = F.grid_sample(strip + REACH, grid, align_corners=False)[:, 0] - REACH
    overhang = (su.abs() - inside).clamp(min=0)
    field = field + (c["c_weight"] - overhang).to(dtype)
    slope = size * c["c_size"]
    ink, line = (torch.stack([c[k] for k in names], 1) for names in (("c_r", "c_g", "c_b"), ("c_lr", "c_lg", "c_lb")))
    half_w, half_h = 1.5 * c["c_pitch"] + 0.44 * c["c_size"], 0.40 * c["c_size"]
    edge = torch.minimum(half_w - along.abs(), half_h - across.abs()) * size
    plate = ((edge + 0.5).clamp(0, 1) * c["c_plate"]).to(dtype)[:, None]
    frame = torch.lerp(frame, line.to(dtype).expand_as(frame), plate)
    return _ink(frame, field, c["c_outline"], slope, line, ink)


def _ink(frame: torch.Tensor, field: torch.Tensor, outline: torch.Tensor, slope: torch.Tensor,
         line: torch.Tensor, fill: torch.Tensor) -> torch.Tensor:  # fmt: skip
    """Draw a distance field: its outline first, its inside over it. ``slope`` is pixels per cell."""
    pixels = field * slope.to(field.dtype)
    around = (pixels + (outline * slope).to(field.dtype) + 0.5).clamp(0, 1)[:, None]
    frame = torch.lerp(frame, line.to(frame.dtype).expand_as(frame), around)
    return torch.lerp(frame, fill.to(frame.dtype).expand_as(frame), (pixels + 0.5).clamp(0, 1)[:, None])
