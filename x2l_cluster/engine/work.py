"""A question on its way to an answer: what was asked, what has become of it so far, and the answer in the end."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from x2l_cluster.engine.decode import Stream
from x2l_cluster.engine.place import Placement
from x2l_cluster.engine.reload import Loaded
from x2l_cluster.models import Prompt, Stretch
from x2l_cluster.types import Answer, Detail, Evidence, Level, Manifest, ReloadPlan, Usage


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
    alone: bool = False
    """Asked without the video, of the language model; the manifest only says whose question it is."""


@dataclass(slots=True, kw_only=True, eq=False)
class Work:
    """A question on its way to an answer."""

    asked: Asked
    prompt: Prompt
    coarse: dict[int, Loaded]
    where: Placement | None
    timings: dict[str, float]
    plan: ReloadPlan
    loaded: list[Loaded] = field(default_factory=list)
    stream: Stream | None = None
    laid: Stretch | None = None
    """The coarse pages as scoring laid them out; kept, they are not laid out again to be answered over."""


def shared(asked: Asked) -> Hashable:
    """Questions for which this is equal are scored in one forward: one video as it stands, one scorer."""
    m = asked.manifest  # revisions count from one again after a deletion, epochs do not
    return m.tenant, m.video, m.recipe.digest, m.epoch, m.revision, asked.scorer, asked.chunks, asked.alone


def answer_of(work: Work, entry_bytes: int) -> Answer:
    """The answer, of what the stream has written; ``entry_bytes`` is what an entry of the raw video would take."""
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
            full_bytes=full_entries * entry_bytes,
        ),
        timings=work.timings,
        finish=stream.finish or "stop",
        covered=manifest.span,
    )


def _evidence(work: Work) -> Iterator[Evidence]:
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
