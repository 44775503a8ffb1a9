"""Where stored entries stand when a cache is assembled.

Stored keys carry no rotation, so positions are free. What is shared between questions must not depend on a plan:
``original`` and ``scaled`` place an entry by the video alone. ``scaled`` shrinks by powers of two, so that a growing
video rarely moves (a ReKV replication lost more than half of its accuracy when positions left the trained range).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from x2l_cluster.types import Positions

QUESTION_ROOM = 1024
"""Positions kept free behind the video for question and answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Maps original coordinates to the ones used: ``anchor + (coords − anchor) · factor``.

    ``anchor`` is where the prefix ends; the prefix itself never moves.
    """

    anchor: float
    factor: float = 1.0

    def __call__(self, coords: Tensor) -> Tensor:
        """coords (entries, axes) → the same shape."""
        return coords if self.factor == 1.0 else self.anchor + (coords - self.anchor) * self.factor

    def at(self, position: float) -> float:
        return self.anchor + (position - self.anchor) * self.factor


def place(mode: Positions, *, anchor: float, end: float, max_position: int) -> Placement:
    """The placement for a video that ends at original position ``end``.

    ``compact`` is not a placement of this kind: it numbers the entries of one assembled cache (see ``assemble``).
    """
    room = max(1.0, max_position - QUESTION_ROOM - anchor)
    length = max(0.0, end - anchor)
    if mode is not Positions.SCALED or length <= room:
        return Placement(anchor=anchor)
    return Placement(anchor=anchor, factor=2.0 ** -math.ceil(math.log2(length / room)))
