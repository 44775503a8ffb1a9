"""The calibration that goes with a checkpoint."""

from __future__ import annotations

from pathlib import Path

from x2l_cluster.models import VideoLM
from x2l_cluster.models.registry import find_checkpoint
from x2l_cluster.select import Calibration

CALIBRATIONS = Path("~/.x2l/calibrations")
"""Where calibrations of checkpoints go whose folder cannot be written to."""


def find_calibration(model: str, lm: VideoLM) -> Calibration | None:
    """The calibration beside a checkpoint, or the user's own of its weights; None when there is none."""
    weights = lm.spec.weights
    for file in (find_checkpoint(model) / "calibration.json", CALIBRATIONS.expanduser() / f"{weights}.json"):
        if file.exists():
            found = Calibration.from_json(file.read_bytes())
            if found.weights == weights:
                return found
    return None
