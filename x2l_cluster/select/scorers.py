"""Scorers by name."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from x2l_cluster.errors import InvalidInput
from x2l_cluster.models.base import ModelSpec
from x2l_cluster.select.attention import attention_mean, calibrated, coarse
from x2l_cluster.select.calibration import Calibration
from x2l_cluster.select.plain import (
    EmbeddingScorer,
    OracleScorer,
    RandomScorer,
    RecentScorer,
    UniformStrideScorer,
)
from x2l_cluster.select.scorer import ChunkScorer

SCORERS: Final = (
    "calibrated",
    "coarse",
    "attention_mean",
    "embedding",
    "random",
    "uniform_stride",
    "recent",
    "oracle",
)
DEFAULT_SCORER: Final = "calibrated"


def get_scorer(
    name: str, spec: ModelSpec, calibration: Calibration | None = None, *, needed: Collection[int] = ()
) -> ChunkScorer:
    """The scorer of that name for a model.

    ``calibrated`` without a calibration is ``coarse`` over all heads; its ``name`` and ``note`` say so.

    Args:
        spec: the model's numbers.
        calibration: what ``x2l calibrate`` found for it.
        needed: the chunks ``oracle`` is to name.

    Raises:
        InvalidInput: no scorer has that name.
        CalibrationMissing: the calibration belongs to another model.
    """
    if name not in SCORERS:
        raise InvalidInput(f"there is no scorer {name!r}; choose one of {', '.join(SCORERS)}")
    makers: dict[str, Callable[[], ChunkScorer]] = {
        "calibrated": lambda: calibrated(spec, calibration) if calibration else coarse(spec, None, _uncalibrated(spec)),
        "coarse": lambda: coarse(spec, calibration),
        "attention_mean": lambda: attention_mean(spec),
        "embedding": EmbeddingScorer,
        "random": RandomScorer,
        "uniform_stride": UniformStrideScorer,
        "recent": RecentScorer,
        "oracle": lambda: OracleScorer(needed=frozenset(needed)),
    }
    return makers[name]()


def _uncalibrated(spec: ModelSpec) -> str:
    return f"model {spec.weights} has no calibration; scoring over coarse keys instead: run `x2l calibrate`"
