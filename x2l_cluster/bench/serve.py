"""``x2l bench serve``: how much a service answers, how fast, and what a batch is worth.

A crowd (``load.py``) asks a service, in this process or at a URL, closed and open. In this process the answering loop
is also measured by itself, one question at a time against sixteen (``batching.py``): a ratio, which holds for a machine
that is busy with other things too. All absolute times are those of the machine at hand.
"""

from __future__ import annotations

import asyncio
import os
import platform
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from x2l_cluster.bench.batching import measure_batching
from x2l_cluster.bench.load import AskIt, Crowd, closed, opened
from x2l_cluster.errors import InvalidInput
from x2l_cluster.messages import AnswerEvent
from x2l_cluster.needles import Script, make_questions, make_script
from x2l_cluster.needles.files import write_mp4
from x2l_cluster.service.local import LocalService
from x2l_cluster.service.requests import Ask
from x2l_cluster.types import LOCAL_TENANT

VIDEO_FPS: Final = 2
CHUNK_S: Final = 16.0
"""Of the bundled model; what questions about somebody else's videos are made for."""
OPEN_SHARE: Final = 0.7
"""Of what a closed crowd was served: the rate at which an open one asks unless told."""

Progress = Callable[[str], None]
Scrape = Callable[[], Awaitable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked.

    Attributes:
        videos, chunks: of needles, rendered and indexed for it; with a URL, whatever is there.
        zipf: how unlike in popularity they are; see :class:`~x2l_cluster.bench.load.Crowd`.
        people: of the closed crowd.
        rate: questions a second of the open crowd; by default :data:`OPEN_SHARE` of what the closed one was served.
        questions: of each crowd.
        rounds: of one at a time against sixteen; 0 leaves that out.
        threads: of torch on a CPU, for all of it.
    """

    videos: int = 8
    chunks: int = 12
    zipf: float = 1.0
    people: int = 16
    rate: float | None = None
    questions: int = 64
    max_tokens: int = 64
    rounds: int = 7
    threads: int = 1
    seed: int = 0


def run_serve(
    load: Load,
    *,
    url: str | None = None,
    model: str = "reference",
    device: str | None = None,
    dtype: str | None = None,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Runs it and returns the object that ``--json`` prints.

    Args:
        url: of a running service, whose videos are asked about; by default one in this process.

    Raises:
        InvalidInput: the service at ``url`` has no video that is ready.
    """
    if url is not None:
        return asyncio.run(_over_http(load, url, progress))
    threads = torch.get_num_threads()
    torch.set_num_threads(load.threads)
    try:
        with _service(load, model, device, dtype, progress) as (service, questions):
            crowds = asyncio.run(_crowds(load, _in_process(service, load), questions, _own_metrics, progress))
            batching: dict[str, Any] = {"ratios": {}}
            if load.rounds:
                asked = Crowd(questions=questions, zipf=load.zipf, seed=load.seed).draw(16 * (load.rounds + 1))
                batching = measure_batching(
                    service.engine,
                    asked,
                    rounds=load.rounds,
                    progress=lambda done, total: progress(f"one at a time against sixteen, round {done} of {total}"),
                )
    finally:
        torch.set_num_threads(threads)
    return _report(load, crowds, ratios=batching.pop("ratios"), batching=batching, setup={"model": model})


async def _over_http(load: Load, url: str, progress: Progress) -> dict[str, Any]:
    import httpx

    from x2l_cluster.client import AsyncX2L

    async with AsyncX2L(url) as x2l, httpx.AsyncClient(base_url=url, timeout=30.0) as http:
        videos = [video.id for video in await x2l.videos() if video.chunks]
        if not videos:
            raise InvalidInput(f"the service at {url} has no video to ask about; index some first (x2l index FILE)")
        _, texts = _needles(load.seed, load.chunks, CHUNK_S)

        def ask(video: str, question: str) -> AsyncGenerator[AnswerEvent, None]:
            return x2l.answers(question, [video], max_tokens=load.max_tokens)

        async def scrape() -> str:
            return (await http.get("/metrics")).raise_for_status().text

        crowds = await _crowds(load, ask, dict.fromkeys(videos, texts), scrape, progress)
    return _report(load, crowds, ratios={}, batching={}, setup={"url": url})


# --- what is asked, and about what ----------------------------------------------------------------------------------


def _needles(seed: int, chunks: int, chunk_s: float) -> tuple[Script, list[str]]:
    script = make_script(seed, duration_s=chunks * chunk_s, chunk_s=chunk_s, split="eval")
    return script, list(dict.fromkeys(question.text for question in make_questions(script, seed=seed)))


@contextmanager
def _service(
    load: Load, model: str, device: str | None, dtype: str | None, progress: Progress
) -> Iterator[tuple[LocalService, dict[str, list[str]]]]:
    """A service over a disk of its own, and the questions about each of its videos, the most popular first."""
    with (
        tempfile.TemporaryDirectory(prefix="x2l-bench-") as folder,
        LocalService.open(model, store=f"disk:{folder}/store", device=device, dtype=dtype) as service,
    ):
        recipe = service.engine.lm.recipe()
        questions = {}
        for number in range(load.videos):
            progress(f"indexing video {number + 1} of {load.videos}")
            chunk_s = recipe.chunk_frames / recipe.sampling.fps
            script, texts = _needles(load.seed + number, load.chunks, chunk_s)
            path = Path(folder) / f"{number}.mp4"
            write_mp4(script, path, fps=VIDEO_FPS)
            questions[service.engine.index(path, video=f"needles-{number}").video] = texts
        yield service, questions


def _in_process(service: LocalService, load: Load) -> AskIt:
    def ask(video: str, question: str) -> AsyncGenerator[AnswerEvent, None]:
        asked = Ask(question=question, videos=(video,), max_tokens=load.max_tokens)
        return service.answers(LOCAL_TENANT, asked)

    return ask


# --- what comes of it -----------------------------------------------------------------------------------------------


async def _crowds(
    load: Load, ask: AskIt, questions: Mapping[str, Sequence[str]], scrape: Scrape, progress: Progress
) -> dict[str, Any]:
    crowd = Crowd(questions=questions, zipf=load.zipf, seed=load.seed)
    warm = Crowd(questions=questions, zipf=0.0, seed=load.seed)
    progress("warming up")
    await closed(ask, warm, people=load.people, questions=2 * len(questions))
    progress(f"closed: {load.people} people, {load.questions} questions")
    first = await _batched(scrape, closed(ask, crowd, people=load.people, questions=load.questions))
    rate = load.rate or max(0.01, OPEN_SHARE * first["questions_per_s"])
    progress(f"open: {rate:.2f} questions a second, {load.questions} questions")
    second = await _batched(scrape, opened(ask, crowd, rate=rate, questions=load.questions))
    return {"closed": first, "open": second}


async def _batched(scrape: Scrape, crowd: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """A crowd, and how many questions a decode step had meanwhile, if that can be seen from here."""
    before = _batches(await scrape())
    row = await crowd
    steps, members = (now - then for now, then in zip(_batches(await scrape()), before, strict=True))
    return row | {"decode_batch": round(members / steps, 2) if steps else None}


def _batches(exposition: str) -> tuple[float, float]:
    """Decode steps, and questions in all of them together."""
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(exposition)
        if family.name == "x2l_decode_batch"
        for sample in family.samples
        if not sample.labels.get("le")
    }
    return samples.get("x2l_decode_batch_count", 0.0), samples.get("x2l_decode_batch_sum", 0.0)


async def _own_metrics() -> str:
    return generate_latest().decode()


def _report(
    load: Load,
    crowds: Mapping[str, Any],
    *,
    ratios: Mapping[str, float],
    batching: Mapping[str, Any],
    setup: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "suite": "serve",
        "load": crowds,
        "batching": batching,
        "ratios": ratios,
        "setup": {
            **setup,
            **asdict(load),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "torch": torch.__version__,
            "load": round(os.getloadavg()[0], 2),
        },
        "note": "absolute times and rates are those of this machine and of what else it was doing; compare ratios",
    }
