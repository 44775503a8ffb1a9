"""The sprites: letters of many fonts and the marker shapes, as signed distance fields.

A distance field can be drawn at any size, weight and outline with clean edges. The bundled ``atlas.npz`` is made
once by ``python -m x2l_cluster.needles.atlas`` from the fonts that matplotlib and Pillow ship (DejaVu: Bitstream
Vera licence; STIX: OFL; Computer Modern: Bakoma; Aileron: CC0); nobody else needs those fonts.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from x2l_cluster.needles.script import LETTERS, SHAPES, Split

CELL = 48  # samples a side
REACH = 0.25  # the field is clipped at this distance (in cells)
_FILE = Path(__file__).with_name("atlas.npz")

TRAIN_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol",
    "STIXGeneralItalic", "STIXGeneralBolIta", "cmr10", "cmb10", "cmti10",
)  # fmt: skip
EVAL_FONTS = ("Aileron", "DejaVuSansMono-Bold", "DejaVuSerif-BoldItalic", "cmss10", "cmtt10")


@dataclass(frozen=True, slots=True, kw_only=True)
class Atlas:
    """Distance fields, positive inside, in cells: ``letters (fonts, 20, 48, 48)``, ``shapes (7, 48, 48)``.

    Letters have a cap height of 0.62 cells and are centred; shapes have a radius of about 0.4 cells.
    """

    letters: torch.Tensor
    shapes: torch.Tensor
    fonts: tuple[str, ...]

    def font_range(self, split: Split) -> range:
        """Indices of the fonts of a split; training and evaluation share none."""
        return range(len(TRAIN_FONTS)) if split == "train" else range(len(TRAIN_FONTS), len(self.fonts))


@functools.cache
def load_atlas(device: str = "cpu") -> Atlas:
    """The bundled sprites on ``device``, float32."""
    with np.load(_FILE) as data:
        letters, shapes = (
            (torch.from_numpy(data[k].astype(np.float32)) / 127.0 * REACH).to(device) for k in ("letters", "shapes")
        )
    return Atlas(letters=letters, shapes=shapes, fonts=TRAIN_FONTS + EVAL_FONTS)


def distance_field(mask: np.ndarray) -> np.ndarray:
    """``mask`` (bool, square, side a multiple of CELL) → int8 field ``(CELL, CELL)`` in REACH/127 cells."""
    side = mask.shape[0]
    inside = torch.from_numpy(mask)
    edge = torch.zeros_like(inside)
    edge[:-1] |= inside[:-1] != inside[1:]
    edge[:, :-1] |= inside[:, :-1] != inside[:, 1:]
    points = edge.nonzero().float() + 1.0  # an edge lies between two pixels' centres
    centres = (torch.arange(CELL) + 0.5) * side / CELL
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), -1).view(-1, 2)
    far = torch.cdist(grid, points).min(1).values / side
    sign = torch.where(inside[grid[:, 0].long(), grid[:, 1].long()], 1.0, -1.0)
    field = ((far * sign).clamp(-REACH, REACH) / REACH * 127).round().to(torch.int8).view(CELL, CELL)
    return np.asarray(field.numpy())


def _letter(font_name: str, letter: str, side: int = 480) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    if font_name == "Aileron":
        font = ImageFont.load_default(size=side)
    else:
        import matplotlib

        font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{font_name}.ttf", side)
    left, top, right, bottom = font.getbbox(letter)
    image = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8), 0)
    ImageDraw.Draw(image).text((4 - left, 4 - top), letter, fill=255, font=font)
    image = image.crop(image.getbbox())
    height = round(0.62 * side)
    width = min(round(image.width * height / image.height), round(0.78 * side))
    cell = Image.new("L", (side, side), 0)
    cell.paste(image.resize((width, height), Image.Resampling.LANCZOS), ((side - width) // 2, (side - height) // 2))
    return np.asarray(cell) > 127


def _shape(name: str, side: int = 480) -> np.ndarray:  # noqa: PLR0911 - one formula a shape
    axis = (np.arange(side) + 0.5) / side - 0.5
    x, y = np.meshgrid(axis, axis)
    r, angle = np.hypot(x, y), np.arctan2(x, -y)
    if name == "star":
        turn = np.abs((angle / (2 * math.pi) * 5 + 0.5) % 1 - 0.5) * 2  # 0 at a tip, 1 in a notch
        return np.asarray(r < 0.44 * 0.40 / (0.40 * np.cos(turn * math.pi / 5) + (1 - 0.40 * math.cos(math.pi / 5))
                          * np.sin(turn * math.pi / 5) / math.sin(math.pi / 5)))  # fmt: skip
    if name == "ring":
        return np.asarray((r < 0.40) & (r > 0.22))
    if name == "cross":
        return np.asarray((np.minimum(np.abs(x), np.abs(y)) < 0.125) & (np.maximum(np.abs(x), np.abs(y)) < 0.4))
    if name == "square":
        return np.asarray(np.maximum(np.abs(x), np.abs(y)) < 0.34)
    if name == "triangle":
        return np.asarray((y < 0.34) & (np.abs(x) < (y + 0.40) * 0.58))
    if name == "heart":
        u, v = x / 0.36, -(y - 0.02) / 0.36
        return np.asarray((u**2 + v**2 - 0.75) ** 3 - u**2 * v**3 < 0)
    if name == "moon":
        return np.asarray((r < 0.41) & (np.hypot(x - 0.17, y + 0.05) > 0.31))
    raise ValueError(f"no such shape: {name!r}")


def build(path: Path = _FILE) -> None:
    """Draw every sprite and write the bundled file (needs Pillow and matplotlib; a minute)."""
    letters = np.stack(
        [[distance_field(_letter(font, letter)) for letter in LETTERS] for font in TRAIN_FONTS + EVAL_FONTS]
    )
    shapes = np.stack([distance_field(_shape(name)) for name in SHAPES])
    np.savez_compressed(path, letters=letters, shapes=shapes)


if __name__ == "__main__":
    build()
