"""Answering: score, plan, reload, assemble, decode (paper §3.3), for many questions over many videos at once."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property

from torch import Tensor

from x2l_cluster.engine.assemble import Assembler, Prefix
from x2l_cluster.engine.decode import Decoder, Generation, check_room
from x2l_cluster.engine.hints import Hints
from x2l_cluster.engine.place import Placement
from x2l_cluster.engine.read import Reader
from x2l_cluster.engine.reload import Loaded, Reloader
from x2l_cluster.engine.score import Scoring
from x2l_cluster.engine.search import Hit, Search
from x2l_cluster.engine.turns import Turns
from x2l_cluster.engine.upkeep import check_model, let_go
from x2l_cluster.engine.work import Asked, Work, answer_of, shared
from x2l_cluster.errors import KVError, KVMissing, ModelMismatch, UnknownVideo, X2LError
from x2l_cluster.kv.measured import reason_of
from x2l_cluster.models import Page, Prompt, Stretch, VideoLM, View
from x2l_cluster.select import Calibration, ChunkScorer, get_scorer, gloss, make_plan, pins
from x2l_cluster.types import Answer, Detail, Manifest, Positions, ReloadPlan


class Answerer:
    """Answers questions over indexed videos. Safe for several threads: what they share is locked, what they decode is
    their own.

    Args:
        reader: where blocks come from.
        calibration: of the ``calibrated`` and ``coarse`` scorers.
        cache_bytes: what pages and score indexes kept hot may take.

    Attributes:
        turns: held while a question is encoded for scoring; a batch that holds it for each step waits for one such
            forward at most between two steps.
    """

    def __init__(self, lm: VideoLM, reader: Reader, calibration: Calibration | None, *, cache_bytes: int) -> None:
        self.lm = lm
        self.turns = Turns()
        self._reader = reader
        self._calibration = calibration
        self._assembler = Assembler(lm)
        self._hints = Hints(reader.kv)
        self._reloader = Reloader(lm, reader, budget_bytes=cache_bytes)
        self._scoring = Scoring(lm, reader, self.turns, budget_bytes=cache_bytes // 8)
        self._search = Search(lm, self._scoring, self.turns, calibration)

    @cached_property
    def _prefix(self) -> Prefix:
        return Prefix.of(self.lm, self.lm.prompt("?").prefix)

    def answer(self, asked: Sequence[Asked], generation: Generation) -> list[Answer]:
        """Answers in the order of the questions; one batch decodes them all.

        Raises UnknownVideo, ModelMismatch, InvalidQuestion, PromptTooLong, KVMissing, StoreUnavailable, and, where a
        question asked to fail on missing detail, BlockMissing or BlockCorrupt.
        """
        work = self.planned(asked, [generation.max_tokens] * len(asked))
        decoder = Decoder(self.lm)
        for item in work:
            self.reload(item)
            self.join(item, decoder, generation)
        with _timed([item.timings for item in work], "decode_s"):
            for _ in decoder.run():
                pass
        return [self.finished(item) for item in work]

    def plans(self, asked: Sequence[Asked]) -> list[ReloadPlan]:
        """Scores and plans only. Raises as :meth:`answer`."""
        return [work.plan for work in self.planned(asked, [1] * len(asked))]

    def search(
        self, question: str, manifests: Sequence[Manifest], *, limit: int
    ) -> tuple[list[Hit], dict[str, X2LError]]:
        """See :class:`~x2l_cluster.engine.search.Search`. Videos of another model are among those not searched."""
        skipped: dict[str, X2LError] = {}
        own = []
        for manifest in manifests:
            try:
                if manifest.chunks:
                    self._check(manifest)
                own.append(manifest)
            except ModelMismatch as error:
                skipped[manifest.video] = error
        hits, unread = self._search(question, own, self._prefix, limit=limit)
        return hits, skipped | unread

    def check_coarse(self, manifest: Manifest) -> None:
        """Raises KVMissing unless the coarse blocks of every chunk can be had; they are hot then."""
        self._reloader.coarse(manifest, self._placement(manifest))

    def expect(self, manifest: Manifest) -> None:
        """A question about this video is on its way: the tiers may bring near what it is going to read."""
        self._hints.opened(manifest)

    def forget(self, tenant: str, video: str) -> None:
        """Drops what is kept hot of a video."""
        self._hints.forget(tenant, video)
        self._reloader.forget(tenant, video)
        self._scoring.forget(tenant, video)

    # --- score and plan ---------------------------------------------------------------------------------------------

    def planned(self, asked: Sequence[Asked], max_tokens: Sequence[int]) -> list[Work]:
        """Scored and planned, in the order of the questions; those that :func:`shared` makes equal in one forward.

        Raises as :meth:`answer`, for all of them when one is at fault.
        """
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for index, item in enumerate(asked):
            self.expect(item.manifest)
            groups[shared(item)].append(index)
        work: list[Work | None] = [None] * len(asked)
        for indexes in groups.values():
            group = [asked[i] for i in indexes]
            tokens = [max_tokens[i] for i in indexes]
            for index, planned in zip(indexes, self._plan_group(group, tokens), strict=True):
                work[index] = planned
        return [item for item in work if item is not None]

    def _plan_group(self, asked: Sequence[Asked], max_tokens: Sequence[int]) -> Iterator[Work]:
        if asked[0].alone:
            yield from (self._without_video(*each) for each in zip(asked, max_tokens, strict=True))
            return
        self._check(asked[0].manifest)
        timings: dict[str, float] = {}
        with _timed([timings], "coarse_s"):
            asked, coarse = self._coarse(asked)
            manifest = asked[0].manifest
            where = self._placement(manifest)
            pages, end = self._placed([item.page for item in coarse], manifest, where)
        prompts = [self.lm.prompt(gloss(item.question, manifest.info.duration_s), item.history) for item in asked]
        for prompt, tokens in zip(prompts, max_tokens, strict=True):
            check_room(self.lm, end + len(prompt.suffix), tokens)
        laid = Stretch.of([self._prefix.page, *pages]) if where else None
        with _timed([timings], "score_s"):
            scorer, scores, note, missed = self._scores(asked, prompts, pages, end)
        for item, prompt, score in zip(asked, prompts, scores, strict=True):
            plan = self._plan(item, score, scorer)
            yield Work(
                asked=item,
                prompt=prompt,
                coarse={chunk.chunk: loaded for chunk, loaded in zip(plan.chunks, coarse, strict=True)},
                where=where,
                laid=laid,
                timings={name: seconds / len(asked) for name, seconds in timings.items()},
                plan=replace(plan, note=_notes(note, let_go(manifest)), degraded=missed),
            )

    def _coarse(self, asked: Sequence[Asked]) -> tuple[Sequence[Asked], list[Loaded]]:
        """H of every chunk. What was made again since the manifest was read, of a video that grows, say, is asked about
        as it is now."""
        manifest = asked[0].manifest
        try:
            return asked, self._reloader.coarse(manifest, self._placement(manifest))
        except KVMissing:
            newest = self._newest(manifest)
            if newest is None:
                raise
        asked = [replace(item, manifest=newest) for item in asked]
        return asked, self._reloader.coarse(newest, self._placement(newest))

    def _newest(self, manifest: Manifest) -> Manifest | None:
        """The manifest as it is by now, if it is another one."""
        if self._reader.newest is None:
            return None
        with suppress(X2LError):  # deleted, or the state is away: what is missing stays missing
            newest = self._reader.newest(manifest)
            if newest != manifest and newest.chunks:
                return newest
        return None

    def _without_video(self, asked: Asked, max_tokens: int) -> Work:
        prompt = self.lm.prompt(asked.question, asked.history)
        check_room(self.lm, self._prefix.end + len(prompt.suffix), max_tokens)
        plan = ReloadPlan(chunks=(), scorer="none", detail=Detail(mode="coarse"))
        return Work(asked=asked, prompt=prompt, coarse={}, where=None, timings={}, plan=plan)

    def _check(self, manifest: Manifest) -> None:
        if not manifest.chunks:
            raise UnknownVideo(f"nothing of video {manifest.video} is indexed yet; wait for its first chunk")
        check_model(manifest, self.lm.spec)

    def _scores(
        self, asked: Sequence[Asked], prompts: Sequence[Prompt], pages: Sequence[Page], end: float
    ) -> tuple[ChunkScorer, list[Tensor], str | None, str | None]:
        """By the scorer asked for; without what it needs, over coarse keys, a note that says so, and the reason."""
        manifest = asked[0].manifest
        scorer = get_scorer(asked[0].scorer, self.lm.spec, self._calibration, needed=asked[0].chunks)
        note = scorer.note

        def run(scorer: ChunkScorer) -> list[Tensor]:
            return self._scoring.scores(
                manifest,
                prompts,
                [f"{manifest.video}/{item.question}" for item in asked],
                scorer,
                prefix=self._prefix,
                coarse=pages,
                where=self._placement(manifest) or Placement(anchor=self._prefix.end),
                end=end,
            )

        try:
            return scorer, run(scorer), note, None
        except KVError as error:
            note = f"the score index cannot be had ({error}); scored over coarse keys instead"
            scorer = get_scorer("coarse", self.lm.spec, self._calibration)
            return scorer, run(scorer), note, reason_of(error)

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

    def _placement(self, manifest: Manifest) -> Placement | None:
        """Where the entries of a video stand; None for ``compact``: that depends on the plan."""
        if manifest.recipe.positions is Positions.COMPACT:
            return None
        end = manifest.chunks[-1].position_end
        return self._assembler.placement(manifest.recipe.positions, anchor=self._prefix.end, end=end)

    def _placed(
        self, pages: Sequence[Page], manifest: Manifest, where: Placement | None
    ) -> tuple[Sequence[Page], float]:
        """Pages of every chunk as a question sees them, and the position at which it begins."""
        if where is None:
            return self._assembler.compact(pages, self._prefix.end)
        return pages, where.at(manifest.chunks[-1].position_end)

    # --- reload, assemble, decode -----------------------------------------------------------------------------------

    def reload(self, work: Work, *, most_s: float | None = None) -> None:
        """Fetches the planned L blocks; what cannot be had is answered with its H, flagged, unless asked to fail.

        Args:
            most_s: what is not there by then is late, sooner than the stores' own deadline if need be.
        """
        rows = {row.index: row for row in work.asked.manifest.chunks}
        with _timed([work.timings], "reload_s"):
            fine = self._reloader.fine(
                work.asked.manifest,
                [rows[chunk] for chunk in work.plan.fine],
                work.where,
                instead=work.coarse,
                strict=work.asked.fail_on_missing,
                most_s=most_s,
            )
        work.loaded = [fine.get(chunk.chunk, work.coarse[chunk.chunk]) for chunk in work.plan.chunks]
        self._hints.planned(work.asked.manifest, work.plan)

    def join(self, work: Work, decoder: Decoder, generation: Generation) -> None:
        """Puts a reloaded question into a batch. Raises PromptTooLong."""
        with _timed([work.timings], "assemble_s"):
            view, position = self._view(work)
            work.laid = None  # by now the view has what it needs of it
            work.stream = decoder.join(view, self.lm.embed_text(work.prompt.suffix, position), generation)

    def _view(self, work: Work) -> tuple[View, float]:
        """What a question sees, and the position at which it begins.

        Where the coarse pages stand does not depend on the plan, so questions about one video share them, and each has
        its fine ones instead of some. With most of them fine it is those that are worth sharing.
        """
        pages, position = self._placed([item.page for item in work.loaded], work.asked.manifest, work.where)
        coarse = [work.coarse[chunk.chunk].page for chunk in work.plan.chunks]
        instead = {place: page for place, page in enumerate(pages, 1) if page is not coarse[place - 1]}
        if 2 * len(instead) > len(pages):
            return View([self._prefix.page, *pages]), position
        return View([self._prefix.page, *coarse], instead), position

    def finished(self, work: Work) -> Answer:
        """The answer, of what the stream has written."""
        return answer_of(work, self._entry_bytes(work.asked.manifest))

    def _entry_bytes(self, manifest: Manifest) -> int:
        spec = self.lm.spec
        width = 4 if manifest.recipe.kv_dtype == "float32" else 2
        return 2 * spec.layers * spec.kv_heads * spec.head_dim * width


def _notes(*notes: str | None) -> str | None:
    return "; ".join(filter(None, notes)) or None


@contextmanager
def _timed(timings: Sequence[dict[str, float]], name: str) -> Iterator[None]:
    """Adds the seconds a stretch took, shared evenly."""
    begun = time.perf_counter()
    yield
    for item in timings:
        item[name] = item.get(name, 0.0) + (time.perf_counter() - begun) / len(timings)
