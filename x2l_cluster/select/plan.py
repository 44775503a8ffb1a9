"""From scores to a reload plan: which chunks of a video come back as L for this question."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from torch import Tensor

from x2l_cluster.select.calibration import Calibration
from x2l_cluster.types import ChunkRow, Detail, Kind, Level, PlannedChunk, ReloadPlan

UNCALIBRATED_SHARE = 1 / 8
"""Share of the chunks that ``auto`` takes when nothing is known about how sure the scorer is."""


def make_plan(
    rows: Sequence[ChunkRow],
    scores: Tensor | Sequence[float] | None,
    detail: Detail,
    *,
    scorer: str,
    pins: Collection[int] = (),
    calibration: Calibration | None = None,
    edges: bool = False,
) -> ReloadPlan:
    """The plan for one question and one video.

    Chunks are taken in this order: those pinned by a named time, the edges if the recipe wants them, then by score
    (ties: the earlier chunk). How many:

    - ``coarse``: none at all; ``fine``: all;
    - ``k``: so many, pinned ones included, edges on top;
    - ``budget``: as many as fit (a chunk that does not fit is passed over for the next);
    - ``auto``: those that score within the calibrated margin of the best; at most the calibrated share of the chunks,
      pinned ones included, but always at least the best one. Without a calibration, or with another scorer than the
      calibrated one, the best eighth.

    ``detail.budget_bytes`` binds in every mode: the stored bytes of all planned L never exceed it, whatever was
    pinned. A chunk without a stored L stays H.

    Args:
        rows: the sealed chunks, by index; any number.
        scores: of the rows, in their order, z-sums of the scorer; None, or too few: unknown. What is not finite is
            unknown and comes last.
        scorer: its ``name``.
        pins: chunk indexes; others than those of ``rows`` are ignored.
    """
    known = _known(scores, len(rows))
    ranked = sorted(range(len(rows)), key=lambda i: (-known[i], rows[i].index))
    shown = _shown(known)
    has_fine = [Kind.L in row.blocks for row in rows]
    pinned = [i for i in ranked if rows[i].index in pins]
    ends = [i for i in (0, len(rows) - 1) if edges and rows]
    by_score = _by_score(ranked, known, detail, pinned, calibration if scorer == "calibrated" else None)

    reasons: dict[int, str] = {}
    left = math.inf if detail.budget_bytes is None else detail.budget_bytes

    def take(places: Iterable[int], reason: str, most: float = math.inf) -> None:
        nonlocal left
        for i in places:
            if most <= 0:
                return
            if i in reasons or not has_fine[i] or rows[i].blocks[Kind.L].size_bytes > left:
                continue
            reasons[i] = reason
            left -= rows[i].blocks[Kind.L].size_bytes
            most -= 1

    if detail.mode == "fine":
        take([*pinned, *ends, *ranked], "all")
    elif detail.mode != "coarse":
        most = math.inf if detail.k is None else detail.k
        take(pinned, "pinned", most)
        most -= len(reasons)
        take(ends, "edge")
        take(by_score, "score", most)

    return ReloadPlan(
        chunks=tuple(
            PlannedChunk(
                chunk=row.index,
                span=row.span,
                level=Level.L if i in reasons else Level.H,
                score=shown[i],
                reason=reasons.get(i, "rest"),
                size_bytes=_size(row, Kind.L if i in reasons else Kind.H),
            )
            for i, row in enumerate(rows)
        ),
        scorer=scorer,
        detail=detail,
    )


def _by_score(
    ranked: Sequence[int],
    known: Sequence[float],
    detail: Detail,
    pinned: Sequence[int],
    calibration: Calibration | None,
) -> Sequence[int]:
    """The places that score well enough, best first; how many of them are taken is not yet said."""
    if detail.mode != "auto" or not ranked:
        return ranked
    count = len(ranked)
    if calibration is None:
        return ranked[: math.ceil(count * UNCALIBRATED_SHARE)]
    best = known[ranked[0]]
    if best == -math.inf:  # nothing is known: take no chance on any number of chunks
        return ranked[:1]
    near = [i for i in ranked if known[i] >= best - calibration.margin(count)]
    free = [i for i in near if i not in pinned]
    room = max(0 if near[0] in pinned else 1, calibration.most(count) - len(pinned))
    return free[:room]


def _known(scores: Tensor | Sequence[float] | None, count: int) -> list[float]:
    given = [] if scores is None else scores.tolist() if isinstance(scores, Tensor) else list(scores)
    known = [float(s) if math.isfinite(s) else -math.inf for s in given[:count]]
    return known + [-math.inf] * (count - len(known))


def _shown(known: Sequence[float]) -> list[float]:
    """Scores as reported: what is unknown as the lowest known one (plans travel as JSON, which has no infinity)."""
    low = min((s for s in known if s != -math.inf), default=0.0)
    return [max(s, low) for s in known]


def _size(row: ChunkRow, kind: Kind) -> int:
    return row.blocks[kind].size_bytes if kind in row.blocks else 0
