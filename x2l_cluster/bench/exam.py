"""One video of the needle bench: rendered, indexed once, asked under every policy."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

from x2l_cluster.compress import compress
from x2l_cluster.engine import (
    Assembler,
    Decoder,
    Generation,
    Prefilled,
    Prefiller,
    Prefix,
    Stores,
    VideoEngine,
    find_calibration,
)
from x2l_cluster.kv.block import KVBlock
from x2l_cluster.models import VideoLM, View, load_model
from x2l_cluster.needles import Question, Script, grade, make_questions, make_script, needed_chunks
from x2l_cluster.needles.files import write_mp4
from x2l_cluster.select import gloss
from x2l_cluster.types import Anchors, Detail, LevelSpec, Manifest, Positions, Quant, Recipe, ReloadPlan
from x2l_cluster.video import chunked, open_video

PER_KIND = 40
"""Questions of each kind a video; many questions a video are cheap, and bounds are clustered by video."""
BATCH = 32
VIDEO_FPS = 2
"""Of the files; the model looks at one frame a second."""
UNIFORMS = tuple(LevelSpec(pool=pool, anchors=Anchors.FIRST_TIME, quant=Quant.INT8) for pool in ("2x2", "1x2", "1x1"))
"""Uniform levels, smallest first; compared is the first that keeps at least as many entries as ``x2l_auto`` did."""
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
    store: str = "memory:"


def run_video(job: Job) -> Video:
    """Renders, indexes and asks about one video."""
    torch.set_num_threads(job.threads)
    with (
        tempfile.TemporaryDirectory(prefix="x2l-bench-") as folder,
        _engine(job) as engine,
    ):
        script, asked = make_exam(job.seed, job.chunks, engine.lm.recipe())
        path = Path(folder) / "needles.mp4"
        write_mp4(script, path, fps=VIDEO_FPS)
        done: list[Prefilled] = []
        manifest = engine.index(path, watch=done.append)
        return _Asker(
            engine=engine,
            manifest=manifest,
            done=done,
            path=path,
            asked=asked,
            job=job,
            video=Video(seed=job.seed),
            prefix=Prefix.of(engine.lm, engine.lm.prompt("?").prefix),
        ).run()


def _engine(job: Job) -> VideoEngine:
    lm = _model(job.model, job.device, job.dtype)
    return VideoEngine(lm, Stores.open(job.store), calibration=find_calibration(job.model, lm))


@lru_cache(maxsize=2)
def _model(name: str, device: str | None, dtype: str | None) -> VideoLM:
    """Kept by a process, one a device: loading and hashing weights takes longer than a video."""
    return load_model(name, device=device, dtype=dtype)


def make_exam(seed: int, chunks: int, recipe: Recipe) -> tuple[Script, list[Question]]:
    """A video and its questions, each wording once."""
    step_s = 1 / recipe.sampling.fps
    chunk_s = recipe.chunk_frames * step_s
    script = make_script(seed, duration_s=chunks * chunk_s, chunk_s=chunk_s, split="eval")
    times = [i * step_s for i in range(chunks * recipe.chunk_frames)]
    asked = make_questions(script, per_kind=PER_KIND, seed=seed, frame_times_s=times)
    return script, list({question.text: question for question in asked}.values())


@dataclass(slots=True, kw_only=True, eq=False)
class _Asker:
    """Asks one video's questions under every policy.

    Attributes:
        done: the chunks as they were prefilled, raw KVs included.
        taken: how many chunks ``x2l_auto`` reloaded for each question.
        full_bytes: of a full cache of the video.
    """

    engine: VideoEngine
    manifest: Manifest
    done: Sequence[Prefilled]
    path: Path
    asked: Sequence[Question]
    job: Job
    video: Video
    prefix: Prefix
    taken: dict[int, int] = field(default_factory=dict)
    full_bytes: int = 0

    @property
    def full_entries(self) -> int:
        return sum(row.raw_entries for row in self.manifest.chunks)

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
                self.taken.setdefault(place, len(answer.plan.fine))
                self.full_bytes = answer.usage.full_bytes
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
        lm = self.engine.lm
        blocks, positions = self._blocks(policy)
        pages, position = Assembler(lm).pages(blocks, positions, anchor=self.prefix.end, end=self.done[-1].position_end)
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

    def _blocks(self, policy: str) -> tuple[list[KVBlock], Positions]:
        recipe = self.manifest.recipe
        if policy == "full":
            return [item.raw for item in self.done], recipe.positions
        if policy == "uniform_budget":
            return self._uniform(), recipe.positions
        whole = self.engine.lm.recipe(
            fine=IDENTITY, coarse=IDENTITY, memory_entries=None, kv_dtype="float32", positions=Positions.ORIGINAL
        )
        return [item.raw for item in self._prefilled(whole)], whole.positions

    def _uniform(self) -> list[KVBlock]:
        shares = self.video.kv_share["x2l_auto"]
        wanted = sum(shares) / len(shares) * self.full_entries
        for spec in UNIFORMS:
            blocks = [compress(item.raw, spec, self.manifest.recipe.kv_dtype) for item in self.done]
            if sum(block.entries for block in blocks) >= wanted:
                break
        return blocks

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
