"""What happens in a synthetic video: scenes, their markers and their codes. No pixels here."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "eval"]

COLORS = ("red", "green", "blue", "yellow", "pink", "white", "cyan")
SHAPES = ("star", "ring", "cross", "square", "triangle", "heart", "moon")
# Capitals that cannot be taken for one another (no I, O, Q, G, J, W).
LETTERS = "ABCDEFHKLMNPRSTUVXYZ"
CODE_LENGTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """The sign that marks a whole scene, for example a red star."""

    color: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


ALL_MARKERS = tuple(Marker(color=c, shape=s) for c in COLORS for s in SHAPES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A code of capitals, visible from ``start_s`` to ``end_s`` (seconds of the video)."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One scene: ``[start_s, end_s)``; ``seed`` draws everything about its looks.

    ``marker`` is visible for the whole scene; ``code`` for one short moment of it. Both may be missing.
    """

    index: int
    start_s: float
    end_s: float
    marker: Marker | None
    code: Code | None
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A whole video. Scenes tile ``[0, duration_s)``; neighbours never carry the same marker."""

    seed: int
    split: Split
    duration_s: float
    chunk_s: float
    scenes: tuple[Scene, ...]

    def scene_at(self, time_s: float) -> Scene:
        """The scene shown at ``time_s`` (clamped to the video)."""
        for scene in self.scenes:
            if time_s < scene.end_s:
                return scene
        return self.scenes[-1]

    def counts(self) -> dict[Marker, int]:
        """How many scenes each marker marks; markers that never appear are missing."""
        return dict(Counter(s.marker for s in self.scenes if s.marker is not None))


def make_script(
    seed: int,
    *,
    duration_s: float | None = None,
    groups: int | None = None,
    group_s: float = 2.0,
    chunk_s: float = 16.0,
    min_scene_s: float = 6.0,
    max_scene_s: float = 40.0,
    split: Split = "train",
) -> Script:
    """A random script; the same arguments give the same script on every machine.

    Give either ``duration_s`` or ``groups`` (of ``group_s`` seconds). A code is visible 3 to 5 seconds, never
    across a multiple of ``chunk_s``, so that with two frames a group at one frame per second a whole group lies
    inside its moment and one chunk shows all of it. Seeds of the two splits never meet.
    """
    if (duration_s is None) == (groups is None):
        raise ValueError("make_script wants either duration_s or groups; give exactly one of them")
    total = float(duration_s) if duration_s is not None else float(groups or 0) * group_s
    if total <= 0:
        raise ValueError(f"a script must last longer than nothing; got {total} s")
    rng = random.Random(f"needles/{split}/{seed}")
    reuse, bare = rng.uniform(0.1, 0.6), rng.uniform(0.0, 0.2)
    used: Counter[Marker] = Counter()
    codes: set[str] = set()
    scenes: list[Scene] = []
    start, last = 0.0, None
    while start < total - 1e-6:
        length = (
            rng.uniform(min_scene_s, max_scene_s)
            if rng.random() < 0.5
            else min_scene_s * ((max_scene_s / min_scene_s) ** rng.random())
        )
        end = total if total - start - length < min_scene_s else start + length
        marker = _pick_marker(rng, used, last, reuse, bare)
        if marker is not None:
            used[marker] += 1
        code = _pick_code(rng, start, end, chunk_s, codes) if marker is not None and rng.random() < 0.93 else None
        scenes.append(
            Scene(index=len(scenes), start_s=start, end_s=end, marker=marker, code=code, seed=rng.getrandbits(48))
        )
        start, last = end, marker
    return Script(seed=seed, split=split, duration_s=total, chunk_s=chunk_s, scenes=tuple(scenes))


def _pick_marker(
    rng: random.Random, used: Counter[Marker], last: Marker | None, reuse: float, bare: float
) -> Marker | None:
    if rng.random() < bare:
        return None
    again = [m for m, n in used.items() if n < 4 and m != last]
    if again and rng.random() < reuse:
        returning = [m for m in again if used[m] > 1]
        return rng.choice(returning if returning and rng.random() < 0.6 else again)
    fresh = [m for m in ALL_MARKERS if m not in used]
    return rng.choice(fresh or again or [m for m in ALL_MARKERS if m != last])


def _pick_code(rng: random.Random, start: float, end: float, chunk_s: float, taken: set[str]) -> Code | None:
    margin, shortest = 0.3, 3.0
    windows: list[tuple[float, float]] = []
    low = start + margin
    while low < end - margin - shortest:
        edge = (int((low + 1e-6) // chunk_s) + 1) * chunk_s
        high = min(end - margin, edge - margin)
        if high - low >= shortest:
            windows.append((low, high))
        low = edge + margin
    if not windows:
        return None
    lo, hi = rng.choices(windows, weights=[b - a for a, b in windows])[0]
    length = rng.uniform(shortest, min(5.0, hi - lo))
    begin = rng.uniform(lo, hi - length)
    text = ""
    while not text or text in taken:
        text = "".join(rng.choice(LETTERS) for _ in range(CODE_LENGTH))
    taken.add(text)
    return Code(text=text, start_s=begin, end_s=begin + length)
