"""``x2l calibrate``: probes in, a :class:`Calibration` out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

import x2l_cluster
from x2l_cluster.calibrate.probes import STORAGE, Probe, make_probes
from x2l_cluster.calibrate.search import Found, find_heads, margin_for, recall
from x2l_cluster.models import VideoLM
from x2l_cluster.select import Calibration, Encoding
from x2l_cluster.select.scoring import WAYS, zscore
from x2l_cluster.types import Recipe

CONFIDENCE = 0.99
"""How surely ``auto`` holds the needed chunk."""


def calibrate(
    lm: VideoLM,
    *,
    videos: int = 24,
    lengths: Sequence[int] = (4, 12, 36),
    questions: int = 12,
    recipe: Recipe | None = None,
    encoding: Encoding = Encoding.OVER_COARSE,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Calibration:
    """Finds heads on one half of the probe videos, and margins and figures on the other.

    Args:
        videos: probe videos of each length, at least 2; the first half finds, the second measures.
        lengths: of the videos, in chunks; heads are found on all of them, a margin for each.
        questions: of each kind a video.
        recipe: what the KVs are made by; default: the model's own.
        progress: called with (done, of how many) videos.

    A model that retrieves nothing gets the heads that do least badly, and margins so wide that ``auto`` takes its cap.
    """
    recipe = recipe or lm.recipe()
    probes: dict[int, list[Probe]] = {length: [] for length in lengths}
    plan = [(length, video) for video in range(videos) for length in lengths]
    for done, (length, video) in enumerate(plan):
        probes[length] += make_probes(lm, recipe, chunks=length, video=video, questions=questions, encoding=encoding)
        progress(done + 1, len(plan))
    found = find_heads([p for group in probes.values() for p in group if _finds(p, videos)])
    measured = {length: [p for p in group if not _finds(p, videos)] for length, group in probes.items()}
    margins = {
        length: margin_for(scored(found, group), group, CONFIDENCE) for length, group in measured.items() if group
    }
    return Calibration(
        weights=lm.spec.weights,
        heads=found.heads,
        rotation=found.way.rotation,
        tokens=found.way.tokens,
        aggregation=found.way.aggregation,
        encoding=encoding,
        storage=STORAGE,
        margins=tuple(sorted((length, round(margin, 4)) for length, margin in margins.items())),
        conditions=_conditions(recipe),
        recall=tuple(
            (f"{length} chunks @{k}", round(recall(scored(found, retrieval), retrieval, k), 4))
            for length, group in measured.items()
            if (retrieval := [probe for probe in group if probe.kind == "retrieval"])
            for k in (1, 2, 3)
        ),
        probes=len(plan),
        created_with=f"x2l_cluster {x2l_cluster.__version__}",
    )


def scored(found: Found, probes: Sequence[Probe]) -> list[Tensor]:
    """What the set of heads says to each probe, (chunks,): the sum of z-scores, as the scorer computes it."""
    way = WAYS.index(found.way)
    return [
        zscore(probe.scores[[layer for layer, _ in found.heads], [head for _, head in found.heads], way]).sum(0)
        for probe in probes
    ]


def _finds(probe: Probe, videos: int) -> bool:
    return probe.video < videos // 2


def _conditions(recipe: Recipe) -> tuple[tuple[str, str], ...]:
    names = ("height", "width", "chunk_frames", "positions", "kv_dtype")
    levels = {"fine": recipe.fine, "coarse": recipe.coarse}
    told = {name: str(getattr(recipe, name)) for name in names}
    return tuple((told | {name: f"{spec.pool} {spec.quant}" for name, spec in levels.items()}).items())
