"""Which chunks matter for a question: scorers, the score index, times named in questions, and the reload plan."""

from __future__ import annotations

from x2l_cluster.select.calibration import Calibration
from x2l_cluster.select.features import Bank, Features, HeadKeys
from x2l_cluster.select.plan import make_plan
from x2l_cluster.select.question import Aggregation, EncodedQuestion, Encoding, TokenSet
from x2l_cluster.select.scorer import ChunkScorer, Source
from x2l_cluster.select.scorers import DEFAULT_SCORER, SCORERS, get_scorer
from x2l_cluster.select.times import TimeRef, find_times, gloss, pins

__all__ = [
    "DEFAULT_SCORER",
    "SCORERS",
    "Aggregation",
    "Bank",
    "Calibration",
    "ChunkScorer",
    "EncodedQuestion",
    "Encoding",
    "Features",
    "HeadKeys",
    "Source",
    "TimeRef",
    "TokenSet",
    "find_times",
    "get_scorer",
    "gloss",
    "make_plan",
    "pins",
]
