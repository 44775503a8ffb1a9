"""``x2l bench needles``: the same questions about the same decoded mp4 files, under every policy.

Every video is prefilled once by the real indexer; what the indexer stores serves the service's own policies
(``x2l_auto``, ``all_fine``, ``all_coarse``, ``random_k``), and its raw KVs the others:

- ``full``: the raw KVs of our chunked prefill, all of them;
- ``uniform_budget``: one level for all chunks, pooled 2×2, which is at least what ``x2l_auto`` keeps resident;
- ``stock``: the ordinary full-causal forward: chunked prefill at ratio 1, unquantised, with unbounded memory, which
  equals the stock transformers forward (the golden tests).

``random_k`` reloads as many chunks as ``x2l_auto`` did for the same question.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from x2l_cluster.bench.statistics import paired
from x2l_cluster.compress import compress
from x2l_cluster.engine import Assembler, Decoder, Generation, Prefilled, Prefiller, Prefix, VideoEngine
from x2l_cluster.kv.block import KVBlock
from x2l_cluster.models import View, load_model
from x2l_cluster.needles import KINDS, Question, Script, grade, make_questions, make_script, needed_chunks
from x2l_cluster.needles.mp4 import write_mp4
from x2l_cluster.select import gloss
from x2l_cluster.types import Anchors, Detail, LevelSpec, Manifest, Positions, Quant, Recipe, ReloadPlan
from x2l_cluster.video import chunked, open_video

POLICIES = ("stock", "full", "x2l_auto", "all_fine", "all_coarse", "random_k", "uniform_budget")
DEEP = ("full", "x2l_auto")
"""Policies that are asked more questions, because they are compared with each other."""
SCORERS = ("calibrated", "coarse", "attention_mean", "random")
PER_KIND = 40
"""Questions of each kind a video; many questions a video are cheap, and bounds are clustered by video."""
BATCH = 32
UNIFORM = LevelSpec(pool="2x2", anchors=Anchors.FIRST_TIME, quant=Quant.INT8)
IDENTITY = LevelSpec(pool="1x1", anchors=Anchors.KEEP, quant=Quant.NONE)
ANSWER = Generation(max_tokens=16)


@dataclass(slots=True, kw_only=True)
class Video:
    """What one video contributed.

    Attributes:
        right: policy → kind → right or wrong, question by question, in one order for all policies.
        kv_share, moved_share: policy → one figure a question.
        hits: scorer → k → retrieval questions found; ``wrong``: which of them all_coarse got wrong.
    """

    seed: int
    right: dict[str, dict[str, list[bool]]] = field(default_factory=dict)
    kv_share: dict[str, list[float]] = field(default_factory=dict)
    moved_share: dict[str, list[float]] = field(default_factory=dict)
    hits: dict[str, dict[int, list[bool]]] = field(default_factory=dict)
    wrong: list[bool] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One video to run; travels to a worker process."""

    model: str
    seed: int
    chunks: int
    policies: tuple[str, ...]
    scorers: tuple[str, ...]
    device: str | None
    dtype: str | None
    threads: int


def run_needles(
    model: str,
    *,
    chunks: int,
    questions: int,
    deep: int,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, Any]:
    """Runs the suite and returns the object that ``--json`` prints.

    Args:
        questions: how many of each kind most policies are asked, at least; ``deep``: ``full`` and ``x2l_auto``.
        seed: first evaluation seed.
    """
    recipe = load_model(model, device="cpu").recipe()
    on_cpu = (device or ("cuda" if torch.cuda.is_available() else "cpu")) == "cpu"
    workers = max(1, min(4, (os.cpu_count() or 1))) if on_cpu else 1
    wide, many = (_videos_for(count, chunks, seed, recipe) for count in (questions, max(questions, deep)))
    jobs = [
        Job(
            model=model,
            seed=seed + number,
            chunks=chunks,
            policies=POLICIES if number < wide else DEEP,
            scorers=SCORERS if number < wide else ("calibrated",),
            device=device,
            dtype=dtype,
            threads=1 if workers > 1 else torch.get_num_threads(),
        )
        for number in range(many)
    ]
    videos = []
    for video in _run(jobs, workers):
        videos.append(video)
        progress(len(videos), len(jobs))
    return _summary(sorted(videos, key=lambda video: video.seed), chunks, model)


def _run(jobs: Sequence[Job], workers: int) -> Iterator[Video]:
    if workers == 1:
        yield from map(run_video, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run_video, job) for job in jobs]):
            yield done.result()


# --- one video ------------------------------------------------------------------------------------------------------


def run_video(job: Job) -> Video:
    """Renders, indexes and asks about one video."""
    torch.set_num_threads(job.threads)
    with (
        tempfile.TemporaryDirectory(prefix="x2l-bench-") as folder,
        VideoEngine.from_pretrained(job.model, store="memory:", device=job.device, dtype=job.dtype) as engine,
    ):
        script, asked = _exam(job.seed, job.chunks, engine.lm.recipe())
        path = Path(folder) / "needles.mp4"
        write_mp4(script, path)
        done: list[Prefilled] = []
        manifest = engine.index(path, watch=done.append)
        return _Asker(engine, manifest, done, path, asked, job).run()


def _exam(seed: int, chunks: int, recipe: Recipe) -> tuple[Script, list[Question]]:
    """A video and its questions, each wording once."""
    step_s = 1 / recipe.sampling.fps
    chunk_s = recipe.chunk_frames * step_s
    script = make_script(seed, duration_s=chunks * chunk_s, chunk_s=chunk_s, split="eval")
    times = [i * step_s for i in range(chunks * recipe.chunk_frames)]
    asked = make_questions(script, per_kind=PER_KIND, seed=seed, frame_times_s=times)
    return script, list({question.text: question for question in asked}.values())


def _videos_for(questions: int, chunks: int, seed: int, recipe: Recipe) -> int:
    """How many videos it takes to ask so many questions of every kind."""
    asked = dict.fromkeys(KINDS, 0)
    videos = 0
    while min(asked.values()) < questions:
        for question in _exam(seed + videos, chunks, recipe)[1]:
            asked[question.kind] += 1
        videos += 1
    return max(videos, 1)


class _Asker:
    """Asks one video's questions under every policy."""

    def __init__(
        self,
        engine: VideoEngine,
        manifest: Manifest,
        done: Sequence[Prefilled],
        path: Path,
        asked: Sequence[Question],
        job: Job,
    ) -> None:
        self.engine, self.manifest, self.done, self.path, self.asked, self.job = (
            engine,
            manifest,
            done,
            path,
            asked,
            job,
        )
        self.prefix = Prefix.of(engine.lm, engine.lm.prompt("?").prefix)
        self.full_entries = sum(item.raw.entries for item in done)
        spec = engine.lm.spec
        self.full_bytes = self.full_entries * 2 * spec.layers * spec.kv_heads * spec.head_dim * 2
        self.video = Video(seed=job.seed)
        self.taken: dict[int, int] = {}

    def run(self) -> Video:
        for policy in ("x2l_auto", *(p for p in self.job.policies if p != "x2l_auto")):
            stored = policy in _DETAILS or policy == "random_k"
            texts = self._stored(policy) if stored else list(self._assembled(policy))
            right: dict[str, list[bool]] = defaultdict(list)
            for question, text in zip(self.asked, texts, strict=True):
                right[question.kind].append(grade(question, text))
            self.video.right[policy] = dict(right)
        self._recall()
        return self.video

    def _stored(self, policy: str) -> list[str]:
        """Through the service's own path."""
        texts = [""] * len(self.asked)
        for places, detail in self._details(policy):
            answers = self.engine.ask_many(
                [(self.manifest, self.asked[place].text) for place in places],
                detail=detail,
                scorer="random" if policy == "random_k" else "calibrated",
                generation=ANSWER,
            )
            for place, answer in zip(places, answers, strict=True):
                if policy == "x2l_auto":
                    self.taken[place] = len(answer.plan.fine)
                self._cost(policy, answer.usage.kv_entries, answer.plan)
                texts[place] = answer.text
        return texts

    def _details(self, policy: str) -> Iterator[tuple[Sequence[int], Detail]]:
        """Batches of places in ``asked`` and how they are asked; ``random_k`` reloads as many as ``x2l_auto`` did."""
        groups: dict[Detail, list[int]] = defaultdict(list)
        for place in range(len(self.asked)):
            detail = Detail(mode="k", k=self.taken[place]) if policy == "random_k" else _DETAILS[policy]
            groups[detail].append(place)
        for detail, places in groups.items():
            yield from ((places[i : i + BATCH], detail) for i in range(0, len(places), BATCH))

    def _cost(self, policy: str, entries: int, plan: ReloadPlan) -> None:
        self.video.kv_share.setdefault(policy, []).append(entries / self.full_entries)
        self.video.moved_share.setdefault(policy, []).append(plan.reload_bytes / self.full_bytes)

    def _assembled(self, policy: str) -> Iterator[str]:
        """From blocks that the service does not store."""
        recipe, lm = self.manifest.recipe, self.engine.lm
        blocks = self._blocks(policy)
        pages, position = Assembler(lm).pages(
            blocks, recipe.positions, anchor=self.prefix.end, end=self.done[-1].position_end
        )
        share = sum(block.entries for block in blocks) / self.full_entries
        moved = 1.0 if policy in ("full", "stock") else sum(block.nbytes for block in blocks) / self.full_bytes
        for start in range(0, len(self.asked), BATCH):
            decoder = Decoder(lm)
            streams = []
            for question in self.asked[start : start + BATCH]:
                prompt = lm.prompt(gloss(question.text, self.manifest.info.duration_s))
                view = View([self.prefix.page, *pages])
                streams.append(decoder.join(view, lm.embed_text(prompt.suffix, position), ANSWER))
                self.video.kv_share.setdefault(policy, []).append(share)
                self.video.moved_share.setdefault(policy, []).append(moved)
            for _ in decoder.run():
                pass
            yield from (stream.text.strip() for stream in streams)

    def _blocks(self, policy: str) -> list[KVBlock]:
        recipe = self.manifest.recipe
        if policy == "full":
            return [item.raw for item in self.done]
        if policy == "uniform_budget":
            return [compress(item.raw, UNIFORM, recipe.kv_dtype) for item in self.done]
        whole = self.engine.lm.recipe(
            fine=IDENTITY, coarse=IDENTITY, memory_entries=None, kv_dtype="float32", positions=Positions.ORIGINAL
        )
        return [item.raw for item in self._prefilled(whole)]

    def _prefilled(self, recipe: Recipe) -> Iterator[Prefilled]:
        lm = self.engine.lm
        with open_video(self.path, recipe.sampling) as stream:
            chunks = chunked(stream, chunk_frames=recipe.chunk_frames, group_frames=lm.spec.group_frames)
            yield from Prefiller(lm, recipe, self.prefix).run(chunks)

    def _recall(self) -> None:
        """Whether a chunk of the top k shows the whole code."""
        spans = [(row.span.start_s, row.span.end_s) for row in self.manifest.chunks]
        retrieval = [question for question in self.asked if question.kind == "retrieval"]
        needed = [set(needed_chunks(question, spans)) for question in retrieval]
        if "all_coarse" in self.video.right:
            self.video.wrong = [not right for right in self.video.right["all_coarse"].get("retrieval", [])]
        for name in self.job.scorers:
            plans = self.engine.plans([(self.manifest, q.text) for q in retrieval], detail="coarse", scorer=name)
            ranked = [sorted(plan.chunks, key=lambda chunk: (-chunk.score, chunk.chunk)) for plan in plans]
            self.video.hits[name] = {
                k: [bool(want & {c.chunk for c in order[:k]}) for want, order in zip(needed, ranked, strict=True)]
                for k in (1, 2, 3)
            }


_DETAILS = {
    "x2l_auto": Detail(mode="auto"),
    "all_fine": Detail(mode="fine"),
    "all_coarse": Detail(mode="coarse"),
}


# --- all videos -----------------------------------------------------------------------------------------------------


def _summary(videos: Sequence[Video], chunks: int, model: str) -> dict[str, Any]:
    def mean(values: Sequence[float]) -> float | None:
        return round(sum(values) / len(values), 4) if values else None

    def flat(policy: str, kind: str) -> list[float]:
        return [float(r) for video in videos for r in video.right.get(policy, {}).get(kind, [])]

    def share(name: str, policy: str) -> float | None:
        return mean([value for video in videos for value in getattr(video, name).get(policy, [])])

    def by_video(policy: str, kind: str, other: str) -> dict[int, list[bool]]:
        return {v.seed: v.right[policy].get(kind, []) for v in videos if policy in v.right and other in v.right}

    wrong = [flag for video in videos for flag in video.wrong]
    recall: dict[str, dict[str, float | None]] = {}
    for scorer in SCORERS:
        hits = {k: [hit for video in videos for hit in video.hits.get(scorer, {}).get(k, [])] for k in (1, 2, 3)}
        first = [hit for video in videos if video.wrong for hit in video.hits.get(scorer, {}).get(1, [])]
        given = [hit for hit, missed in zip(first, wrong, strict=True) if missed]
        recall[scorer] = {str(k): mean(hits[k]) for k in (1, 2, 3)} | {"given_coarse_wrong": mean(given)}
    return {
        "suite": "needles",
        "model": model,
        "chunks": chunks,
        "videos": len(videos),
        "n": {kind: len(flat("all_fine", kind)) for kind in KINDS},
        "n_deep": {kind: len(flat("full", kind)) for kind in KINDS},
        "policies": {
            policy: {kind: mean(flat(policy, kind)) for kind in KINDS}
            | {"kv_share": share("kv_share", policy), "moved_share": share("moved_share", policy)}
            for policy in POLICIES
        },
        "recall": recall,
        "paired": {
            f"{first} - {second}": {
                kind: paired(by_video(first, kind, second), by_video(second, kind, first)) for kind in KINDS
            }
            for first, second in (
                ("x2l_auto", "full"),
                ("x2l_auto", "uniform_budget"),
                ("x2l_auto", "random_k"),
                ("x2l_auto", "stock"),
            )
        },
    }
