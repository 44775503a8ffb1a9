"""Differences with honest bounds: questions about one video are not independent, so bounds are clustered by video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 4000


def paired(
    first: Mapping[int, Sequence[bool]], second: Mapping[int, Sequence[bool]], seed: int = 0
) -> dict[str, float]:
    """``first − second`` of two policies' accuracies on the same questions, with a 95 % interval.

    Args:
        first, second: video → right or wrong, question by question.

    Returns:
        ``difference``, ``low`` and ``high`` (percentiles of a bootstrap over videos), ``n`` questions.
    """
    videos = [video for video in first if len(first[video])]
    gains = np.array([sum(first[v]) - sum(second[v]) for v in videos], dtype=float)
    sizes = np.array([len(first[v]) for v in videos], dtype=float)
    if not videos:
        return {"difference": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    draws = np.random.default_rng(seed).integers(0, len(videos), (RESAMPLES, len(videos)))
    resampled = gains[draws].sum(1) / sizes[draws].sum(1)
    low, high = np.percentile(resampled, (2.5, 97.5))
    return {
        "difference": float(gains.sum() / sizes.sum()),
        "low": float(low),
        "high": float(high),
        "n": int(sizes.sum()),
    }
