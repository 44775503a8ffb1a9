"""Engines over tiny random models, for tests of the whole path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny import qwen3_vl
from x2l_cluster.engine import Stores, VideoEngine
from x2l_cluster.models import VideoLM
from x2l_cluster.select import Aggregation, Calibration, Encoding, TokenSet
from x2l_cluster.video import write_video

SMALL = {"height": 32, "width": 32, "chunk_frames": 4}
"""A recipe that makes many chunks of few frames."""


def calibration(lm: VideoLM) -> Calibration:
    """Any heads will do: these models retrieve nothing."""
    return Calibration(
        weights=lm.spec.weights,
        heads=((0, 1), (1, 0)),
        rotation=False,
        tokens=TokenSet.CONTENT,
        aggregation=Aggregation.MAX,
        encoding=Encoding.OVER_COARSE,
        margins=((4, 0.5), (16, 0.5)),
    )


def engine(
    store: str = "memory:", *, fine: str | None = None, lm: VideoLM | None = None, **options: Any
) -> VideoEngine:
    lm = lm or qwen3_vl(0)
    options.setdefault("calibration", calibration(lm))
    return VideoEngine(lm, Stores.open(store, fine=fine), **options)


def mosaic(path: Path, seconds: int, seed: int = 0, fps: float = 2.0, side: int = 12) -> Path:
    """Four by four blocks of random colours, ``side`` pixels each, another picture at every frame."""
    rng = np.random.default_rng(seed)
    frames = (
        np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((side, side, 1))).astype(np.uint8)
        for _ in range(int(seconds * fps))
    )
    write_video(path, frames, fps=fps)
    return path


def files(folder: Path) -> list[str]:
    """Every file below a folder that holds data (not locks or counters)."""
    kept = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("lock", ".lock", ".epoch"))
    return sorted(str(path.relative_to(folder)) for path in kept)
