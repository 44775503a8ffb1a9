"""``x2l bench needles``: the same questions about the same decoded mp4 files, under every policy.

Every video is prefilled once by the real indexer; what the indexer stores serves the service's own policies
(``x2l_auto``, ``all_fine``, ``all_coarse``, ``random_k``), and its raw KVs the others:

- ``full``: the raw KVs of our chunked prefill, all of them;
- ``uniform_budget``: one level for all chunks, pooled 2×2 (or less, until it is at least what ``x2l_auto`` keeps);
- ``stock``: the ordinary full-causal forward: chunked prefill at ratio 1, unquantised, with unbounded memory, which
  equals the stock transformers forward (the golden tests).

``random_k`` reloads as many chunks as ``x2l_auto`` did for the same question.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch

from x2l_cluster.bench.exam import Job, Video, make_exam, run_video
from x2l_cluster.bench.statistics import paired
from x2l_cluster.errors import InvalidInput
from x2l_cluster.kv.faulty import FaultPlan
from x2l_cluster.models import load_model
from x2l_cluster.needles import KINDS
from x2l_cluster.types import Recipe

POLICIES = ("stock", "full", "x2l_auto", "all_fine", "all_coarse", "random_k", "uniform_budget")
DEEP = ("full", "x2l_auto")
"""Policies that are asked more questions, because they are compared with each other."""
MOST_VIDEOS = 500
SCORERS = ("calibrated", "coarse", "attention_mean", "random")


def run_needles(
    model: str,
    *,
    chunks: int,
    questions: int,
    deep: int,
    seed: int = 0,
    faults: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, Any]:
    """Runs the suite and returns the object that ``--json`` prints.

    Args:
        questions: how many of each kind most policies are asked, at least; ``deep``: ``full`` and ``x2l_auto``.
        seed: first evaluation seed.
        workers: processes, a video each at a time; by default up to 4 on a CPU, one a GPU. GPUs take turns.
        faults: what goes wrong with stored blocks, as :meth:`~x2l_cluster.kv.faulty.FaultPlan.parse` takes it.
    """
    if faults is not None:
        FaultPlan.parse(faults)  # before anything is rendered
    recipe = load_model(model, device="cpu").recipe()
    devices = _devices(device)
    if workers is None:
        workers = min(4, os.cpu_count() or 1) if devices == ["cpu"] else len(devices)
    wide, many = (_videos_for(count, chunks, seed, recipe) for count in (questions, max(questions, deep)))
    jobs = [
        Job(
            model=model,
            seed=seed + number,
            chunks=chunks,
            policies=POLICIES if number < wide else DEEP,
            scorers=SCORERS if number < wide else ("calibrated",),
            device=devices[number % len(devices)],
            dtype=dtype,
            threads=1 if workers > 1 else torch.get_num_threads(),
            store="memory:" if faults is None else f"faulty:{faults}@memory:",
        )
        for number in range(many)
    ]
    videos = []
    for video in _run(jobs, workers):
        videos.append(video)
        progress(len(videos), len(jobs))
    return _summary(sorted(videos, key=lambda video: video.seed), chunks, model)


def _devices(device: str | None) -> list[str]:
    """The devices that take turns: what was asked for, or all GPUs, or the CPU."""
    if device not in (None, "cuda"):
        return [device]
    return [f"cuda:{n}" for n in range(torch.cuda.device_count())] or [device or "cpu"]


def _run(jobs: Sequence[Job], workers: int) -> Iterator[Video]:
    if workers == 1:
        yield from map(run_video, jobs)
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_attend_parent)
    try:
        for done in as_completed([pool.submit(run_video, job) for job in jobs]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _attend_parent() -> None:
    """In a worker: Ctrl-C is for the parent, which then drops what has not begun; and when it is gone, so are we."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _videos_for(questions: int, chunks: int, seed: int, recipe: Recipe) -> int:
    """How many videos it takes to ask so many questions of every kind."""
    asked = dict.fromkeys(KINDS, 0)
    for videos in range(1, MOST_VIDEOS + 1):
        for question in make_exam(seed + videos - 1, chunks, recipe)[1]:
            asked[question.kind] += 1
        if min(asked.values()) >= questions:
            return videos
    poorest = min(asked, key=lambda kind: asked[kind])
    raise InvalidInput(
        f"{MOST_VIDEOS} videos of {chunks} chunks hold {asked[poorest]} {poorest} questions, not {questions}: ask "
        "for longer videos (--chunks) or fewer questions"
    )


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
