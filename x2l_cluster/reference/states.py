"""In which state a question sees each chunk: drawn at random for training, fixed by a policy for evaluation."""

from __future__ import annotations

import random

import torch

from x2l_cluster.needles.questions import Question, needed_chunks
from x2l_cluster.reference.layout import COARSE, FINE, RAW, UNIFORM

Spans = list[tuple[float, float]]
POLICIES = ("full", "fine", "needed", "auto", "random2", "coarse", "uniform", "stock")
_WHOLE = {"full": RAW, "stock": RAW, "fine": FINE, "coarse": COARSE, "uniform": UNIFORM}
# Order, existence and count are about the whole video: no chunk of theirs must be sharp.
_GLOBAL = {"order", "existence", "count"}


def _all(state: int, chunks: int) -> torch.Tensor:
    return torch.full((chunks,), state, dtype=torch.uint8)


def _mix(rng: random.Random, chunks: int, needed: list[int], extra: int, likely: list[int]) -> torch.Tensor:
    """Everything coarse but the needed chunks and ``extra`` others, of the ``likely`` ones if any."""
    out = _all(COARSE, chunks)
    pool = likely or range(chunks)
    out[rng.sample(pool, min(len(pool), extra))] = FINE
    out[needed] = FINE
    return out


def _needed(question: Question, spans: Spans) -> list[int]:
    return [] if question.kind in _GLOBAL else needed_chunks(question, spans)


def _likely(question: Question, spans: Spans) -> list[int]:
    """Chunks that a scorer brings back sharp although they need not be: those that show what a global question names.

    A model that never saw such a mixture in training counts the sharp scene twice, or only that one.
    """
    return needed_chunks(question, spans) if question.kind in _GLOBAL else []


def policy_states(question: Question, spans: Spans, rng: random.Random, policy: str) -> torch.Tensor:
    """``(C,)`` states under a policy of ``POLICIES``; ``auto`` stands for a plan of one chunk more than is needed."""
    if policy in _WHOLE:
        return _all(_WHOLE[policy], len(spans))
    needed = [] if policy == "random2" else _needed(question, spans)
    likely = _likely(question, spans) if policy == "auto" else []
    return _mix(rng, len(spans), needed, {"needed": 0, "auto": 1, "random2": 2}[policy], likely)


def training_states(question: Question, spans: Spans, rng: random.Random) -> torch.Tensor:
    """``(C,)`` states at random. A code is never asked for where its chunk is coarse: that would teach guessing."""
    n, needed, draw = len(spans), _needed(question, spans), rng.random()
    if draw < 0.33:
        return _all((RAW, FINE, UNIFORM)[int(draw / 0.11)], n)
    if draw < 0.43:  # anything goes, but what must be read is readable
        out = torch.tensor([rng.choice((RAW, FINE, COARSE)) for _ in range(n)], dtype=torch.uint8)
        out[needed] = rng.choice((RAW, FINE))
        return out
    if question.kind != "retrieval" and draw < 0.60:
        return _all(COARSE, n)
    # The rest is what a plan looks like. What a global question names is sharp in most of them, as a scorer sees to it.
    likely = _likely(question, spans) if rng.random() < 0.75 else []
    extra = rng.choice((0, 0, 0, 1, 1, 2, 3) if needed else (1, 1, 1, 2, 2, 3))
    return _mix(rng, n, needed, extra, likely)
