"""A question between its plan and its answer, as the parts of the answering loop hand it on."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from x2l_cluster import metrics
from x2l_cluster.engine.ticket import Completed, Failed, Ticket
from x2l_cluster.engine.work import Work
from x2l_cluster.engine.writer import Writer
from x2l_cluster.errors import AnswerLost, X2LError
from x2l_cluster.types import Tier

LOG: Final = logging.getLogger(__name__)
PHASES: Final = ("coarse", "score", "reload", "assemble", "decode")


@dataclass(slots=True, kw_only=True, eq=False)
class Question:
    """What is known of it by now."""

    ticket: Ticket
    work: Work
    writer: Writer
    held_bytes: int = 0
    """What it was given of the room; whoever lets go of the question gives it back."""
    token_s: float | None = None
    """When its last token came, by ``time.perf_counter``."""


@contextmanager
def answering(tickets: Sequence[Ticket]) -> Iterator[None]:
    """Whatever goes wrong fails these tickets, and nothing else."""
    try:
        yield
    except X2LError as error:
        for ticket in tickets:
            ticket.fail(error)
    except Exception as error:
        LOG.exception("answering failed")
        for ticket in tickets:
            ticket.fail(
                AnswerLost(
                    f"answering about video {ticket.asked.manifest.video} failed ({type(error).__name__}: {error}); "
                    "ask again, and report it if it happens again"
                )
            )


def count(ticket: Ticket, end: Completed | Failed) -> None:
    """Metrics of a question that has ended."""
    metrics.QUESTION_S.observe(time.perf_counter() - ticket.begun_s)
    if isinstance(end, Failed):
        metrics.QUESTIONS.labels(end.error.code).inc()
        return
    answer = end.answer
    metrics.QUESTIONS.labels("degraded" if answer.degraded else "ok").inc()
    for phase in PHASES:
        metrics.PHASE_S.labels(phase).observe(answer.timings.get(f"{phase}_s", 0.0))
    metrics.TOKENS.labels("prompt").inc(answer.usage.prompt_tokens)
    metrics.TOKENS.labels("answer").inc(answer.usage.answer_tokens)
    metrics.PLANNED_CHUNKS.observe(len(answer.plan.fine))
    for evidence in answer.evidence:
        if evidence.degraded:
            metrics.DEGRADED_CHUNKS.labels(evidence.degraded).inc()
        elif evidence.tier is not Tier.DEVICE:
            metrics.RELOAD_BYTES.labels(evidence.tier).inc(evidence.size_bytes)
