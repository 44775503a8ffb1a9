"""Answering: score, plan, reload, assemble, decode (paper §3.3), for many questions over many videos at once."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from x2l_cluster.engine.assemble import Assembler, Prefix
from x2l_cluster.engine.decode import Decoder, Generation, Stream
from x2l_cluster.engine.place import Placement
from x2l_cluster.engine.reload import Loaded, Reloader
from x2l_cluster.engine.score import Scoring
from x2l_cluster.errors import BlockMissing, UnknownVideo
from x2l_cluster.kv.store import KVStore
from x2l_cluster.models import Prompt, VideoLM, View
from x2l_cluster.select import Calibration, ChunkScorer, get_scorer, gloss, make_plan, pins
from x2l_cluster.types import Answer, Detail, Evidence, Kind, Level, Manifest, Positions, ReloadPlan, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question about one video, and how it is to be answered."""

    manifest: Manifest
    question: str
    detail: Detail = field(default_factory=Detail)
    scorer: str = "calibrated"
    history: tuple[tuple[str, str], ...] = ()
    fail_on_missing: bool = False
    chunks: tuple[int, ...] = ()
    """For the ``oracle`` scorer."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Work:
    """A question on its way to an answer."""

    asked: Asked
    prompt: Prompt
    coarse: list[Loaded]
    where: Placement
    timings: dict[str, float]
    plan: ReloadPlan
    loaded: list[Loaded] = field(default_factory=list)
    stream: Stream | None = None


class Answerer:
    """Answers questions over indexed videos. Safe for several threads: what they share is locked, what they decode is
    their own.

    Args:
        calibration: of the ``calibrated`` and ``coarse`` scorers.
        cache_bytes: what pages and score indexes kept hot may take.
    """

    def __init__(self, lm: VideoLM, kv: KVStore, calibration: Calibration | None, *, cache_bytes: int) -> None:
        self._lm = lm
        self._calibration = calibration
        self._assembler = Assembler(lm)
        self._reloader = Reloader(lm, kv, budget_bytes=cache_bytes)
        self._scoring = Scoring(lm, self._reloader, budget_bytes=cache_bytes // 8)

    @cached_property
    def _prefix(self) -> Prefix:
        return Prefix.of(self._lm, self._lm.prompt("?").prefix)

    def answer(self, asked: Sequence[Asked], generation: Generation) -> list[Answer]:
        """Answers in the order of the questions; one batch decodes them all.

        Raises UnknownVideo, InvalidQuestion, PromptTooLong, KVMissing, StoreUnavailable, and, where a question asked
        to fail on missing detail, BlockMissing or BlockCorrupt.
        """
        work = self._planned(asked)
        decoder = Decoder(self._lm)
        for item in work:
            self._reload(item)
            self._join(item, decoder, generation)
        with _timed([item.timings for item in work], "decode_s"):
            for _ in decoder.run():
                pass
        return [self._answer(item) for item in work]

    def plans(self, asked: Sequence[Asked]) -> list[ReloadPlan]:
        """Scores and plans only. Raises as :meth:`answer`."""
        return [work.plan for work in self._planned(asked)]

    def forget(self, tenant: str, video: str) -> None:
        """Drops what is kept hot of a video."""
        self._reloader.forget(tenant, video)
        self._scoring.forget(tenant, video)

    # --- score and plan ---------------------------------------------------------------------------------------------

    def _planned(self, asked: Sequence[Asked]) -> list[_Work]:
        """Questions of one video that want one scorer are scored in one forward."""
        groups: dict[object, list[int]] = defaultdict(list)
        for index, item in enumerate(asked):
            m = item.manifest
            groups[m.tenant, m.video, m.recipe.digest, m.revision, item.scorer, item.chunks].append(index)
        work: list[_Work | None] = [None] * len(asked)
        for indexes in groups.values():
            for index, planned in zip(indexes, self._plan_group([asked[i] for i in indexes]), strict=True):
                work[index] = planned
        return [item for item in work if item is not None]

    def _plan_group(self, asked: Sequence[Asked]) -> Iterator[_Work]:
        manifest = asked[0].manifest
        if not manifest.chunks:
            raise UnknownVideo(f"nothing of video {manifest.video} is indexed yet; wait for its first chunk")
        scorer = get_scorer(asked[0].scorer, self._lm.spec, self._calibration, needed=asked[0].chunks)
        prompts = [self._lm.prompt(gloss(item.question, manifest.info.duration_s), item.history) for item in asked]
        where, end = self._placement(manifest)
        timings: dict[str, float] = {}
        with _timed([timings], "coarse_s"):
            coarse = self._reloader.coarse(manifest, where)
        with _timed([timings], "score_s"):
            scores = self._scoring.scores(
                manifest,
                prompts,
                [f"{manifest.video}/{item.question}" for item in asked],
                scorer,
                prefix=self._prefix,
                coarse=[item.page for item in coarse],
                where=where,
                end=where.at(end),
            )
        for item, prompt, score in zip(asked, prompts, scores, strict=True):
            yield _Work(
                asked=item,
                prompt=prompt,
                coarse=coarse,
                where=where,
                timings={name: seconds / len(asked) for name, seconds in timings.items()},
                plan=self._plan(item, score, scorer),
            )

    def _plan(self, asked: Asked, scores: Tensor, scorer: ChunkScorer) -> ReloadPlan:
        rows = asked.manifest.chunks
        named = pins(asked.question, [row.span for row in rows], asked.manifest.info.duration_s)
        return make_plan(
            rows,
            scores,
            asked.detail,
            scorer=scorer.name,
            pins=[rows[place].index for place in named],
            calibration=self._calibration,
            edges=asked.manifest.recipe.edges_fine,
        )

    def _placement(self, manifest: Manifest) -> tuple[Placement, float]:
        end = manifest.chunks[-1].position_end
        return self._assembler.placement(manifest.recipe.positions, anchor=self._prefix.end, end=end), end

    # --- reload, assemble, decode -----------------------------------------------------------------------------------

    def _reload(self, work: _Work) -> None:
        """Fetches the planned L blocks; what cannot be had is answered with its H, flagged."""
        manifest = work.asked.manifest
        with _timed([work.timings], "reload_s"):
            for row, planned, coarse in zip(manifest.chunks, work.plan.chunks, work.coarse, strict=True):
                loaded = coarse
                if planned.level is Level.L:
                    loaded = self._reloader.fine(manifest, row, work.where, instead=coarse)
                    if loaded.degraded and work.asked.fail_on_missing:
                        raise BlockMissing(
                            f"the fine KVs of chunk {row.index} of video {manifest.video} are {loaded.degraded}; ask "
                            "with on_missing=degrade, or index the video again"
                        )
                work.loaded.append(loaded)

    def _join(self, work: _Work, decoder: Decoder, generation: Generation) -> None:
        manifest = work.asked.manifest
        with _timed([work.timings], "assemble_s"):
            if manifest.recipe.positions is Positions.COMPACT:
                view, position = self._compact(work)
            else:
                view = View([self._prefix.page, *(item.page for item in work.loaded)])
                position = work.where.at(manifest.chunks[-1].position_end)
            tokens = self._lm.embed_text(work.prompt.suffix, position)
            work.stream = decoder.join(view, tokens, generation)

    def _compact(self, work: _Work) -> tuple[View, float]:
        """Contiguous positions depend on the plan, so nothing rotated can be shared."""
        manifest = work.asked.manifest
        blocks = [
            self._reloader.block(manifest, row, Kind.of(item.level))
            for row, item in zip(manifest.chunks, work.loaded, strict=True)
        ]
        pages, position = self._assembler.pages(
            blocks, Positions.COMPACT, anchor=self._prefix.end, end=manifest.chunks[-1].position_end
        )
        return View([self._prefix.page, *pages]), position

    def _answer(self, work: _Work) -> Answer:
        assert work.stream is not None
        manifest, stream = work.asked.manifest, work.stream
        full_entries = sum(row.raw_entries for row in manifest.chunks)
        return Answer(
            text=stream.text.strip(),
            video=manifest.video,
            plan=work.plan,
            evidence=tuple(_evidence(work)),
            usage=Usage(
                prompt_tokens=len(work.prompt.prefix) + len(work.prompt.suffix),
                answer_tokens=len(stream.ids),
                kv_entries=sum(item.page.entries for item in work.loaded),
                full_entries=full_entries,
                reload_bytes=sum(item.moved_bytes for item in work.loaded if item.level is Level.L),
                full_bytes=full_entries * self._entry_bytes(manifest),
            ),
            timings=work.timings,
            finish=stream.finish or "stop",
            covered=manifest.span,
        )

    def _entry_bytes(self, manifest: Manifest) -> int:
        spec = self._lm.spec
        width = 4 if manifest.recipe.kv_dtype == "float32" else 2
        return 2 * spec.layers * spec.kv_heads * spec.head_dim * width


def _evidence(work: _Work) -> Iterator[Evidence]:
    """Planned chunks, best score first."""
    planned = [(p, item) for p, item in zip(work.plan.chunks, work.loaded, strict=True) if p.level is Level.L]
    for chunk, item in sorted(planned, key=lambda pair: -pair[0].score):
        yield Evidence(
            chunk=chunk.chunk,
            span=chunk.span,
            level=item.level,
            score=chunk.score,
            tier=item.tier,
            size_bytes=chunk.size_bytes,
            degraded=item.degraded,
        )


@contextmanager
def _timed(timings: Sequence[dict[str, float]], name: str) -> Iterator[None]:
    """Adds the seconds a stretch took, shared evenly."""
    begun = time.perf_counter()
    yield
    for item in timings:
        item[name] = item.get(name, 0.0) + (time.perf_counter() - begun) / len(timings)
