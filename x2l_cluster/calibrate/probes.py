"""Probes: questions about synthetic videos, with what every head says to them in every way of using it.

Probes come from the training side of the needle suite (its seeds, fonts and backgrounds); evaluation never sees them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from x2l_cluster.engine import Assembler, Prefilled, Prefiller, Prefix
from x2l_cluster.models import Step, VideoLM, View
from x2l_cluster.needles import Question, Script, make_questions, make_script, needed_chunks
from x2l_cluster.needles.drawing import render
from x2l_cluster.select import Bank, EncodedQuestion, Encoding, HeadKeys, gloss
from x2l_cluster.select.scoring import score_all
from x2l_cluster.types import Level, Quant, Recipe, Span

STORAGE = Quant.INT8
"""How the score index keeps keys; probes are scored on what is stored."""
SEED = 7_000_000
"""First seed of probe videos: far from those that training uses."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """One question about one video.

    Attributes:
        scores: (layers, heads, ways, chunks) float32, see ``select.scoring.score_all``.
        needed: chunks that answer it.
        kind: of the question.
        video: number of the probe video, so that halves can be split by video.
    """

    scores: Tensor
    needed: tuple[int, ...]
    kind: str
    video: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Rendered:
    """Sampled frames of a script, chunked; what the prefiller takes."""

    index: int
    frames: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
    times_s: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    span: Span

    @property
    def sampled(self) -> int:
        return len(self.frames)


def make_probes(
    lm: VideoLM, recipe: Recipe, *, chunks: int, video: int, questions: int, encoding: Encoding = Encoding.OVER_COARSE
) -> list[Probe]:
    """Prefills one probe video and asks about it; retrieval, and times of appearance."""
    step_s = 1.0 / recipe.sampling.fps
    chunk_s = recipe.chunk_frames * step_s
    script = make_script(SEED + 1000 * video + chunks, duration_s=chunks * chunk_s, chunk_s=chunk_s, split="train")
    times = [i * step_s for i in range(chunks * recipe.chunk_frames)]
    asked = [
        question
        for question in make_questions(
            script, per_kind={"retrieval": questions, "time": questions}, frame_times_s=times
        )
        if question.kind == "retrieval" or question.tolerance_s > 0
    ]
    prefix = Prefix.of(lm, lm.prompt("?").prefix)
    done = list(Prefiller(lm, recipe, prefix).run(_rendered(script, times, recipe)))
    return [
        Probe(scores=scores, needed=tuple(needed), kind=question.kind, video=video)
        for question, scores, needed in _ask(lm, recipe, prefix, done, asked, encoding)
        if needed
    ]


def _rendered(script: Script, times: list[float], recipe: Recipe) -> Iterator[_Rendered]:
    size = recipe.height or int(recipe.max_pixels**0.5) // 32 * 32
    for start in range(0, len(times), recipe.chunk_frames):
        here = times[start : start + recipe.chunk_frames]
        frames = render(script, here, size=size).numpy()
        end_s = times[start + len(here)] if start + len(here) < len(times) else here[-1] + times[1] - times[0]
        yield _Rendered(
            index=start // recipe.chunk_frames,
            frames=frames,
            times_s=np.array(here),
            span=Span(start_s=here[0], end_s=end_s),
        )


def _ask(
    lm: VideoLM,
    recipe: Recipe,
    prefix: Prefix,
    done: list[Prefilled],
    asked: list[Question],
    encoding: Encoding,
) -> Iterator[tuple[Question, Tensor, list[int]]]:
    spec = lm.spec
    every = tuple((layer, head) for layer in range(spec.layers) for head in range(spec.kv_heads))
    indexes = [item.index for item in done]
    bank = Bank.of(indexes, [HeadKeys.of(item.blocks[Level.L], every, STORAGE) for item in done])
    where = Assembler(lm).placement(recipe.positions, anchor=prefix.end, end=done[-1].position_end)
    bank = replace(bank, coords=where(bank.coords))
    pages, end = Assembler(lm).pages(
        [item.blocks[Level.H] for item in done], recipe.positions, anchor=prefix.end, end=done[-1].position_end
    )
    if encoding is Encoding.ALONE:
        pages, end = [], prefix.end
    spans = [(item.span.start_s, item.span.end_s) for item in done]
    rotated: Bank | None = None
    for question in asked:
        prompt = lm.prompt(gloss(question.text, done[-1].span.end_s))
        tokens = lm.embed_text(prompt.suffix, end)
        step = Step(tokens=tokens, view=View([prefix.page, *pages]))
        queries = lm.forward([step], queries=frozenset(range(spec.layers))).queries[0]
        encoded = EncodedQuestion.of(prompt, tokens, queries, lm)
        rotated = rotated or bank.rotated(lm.rotate)
        yield question, score_all(encoded, bank, rotated).cpu(), needed_chunks(question, spans)
