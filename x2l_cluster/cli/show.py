"""What commands print: text for people, or the same facts as one JSON value."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from x2l_cluster.cli.text import clock, plain, share, size, stretch, strip
from x2l_cluster.types import Answer, Evidence, Kind, Level, Manifest, PlannedChunk, ReloadPlan, Span

if TYPE_CHECKING:
    from x2l_cluster.cli.doctor import Finding
    from x2l_cluster.messages import Chunk, Job, Video
    from x2l_cluster.select import Calibration
    from x2l_cluster.state.base import VideoRecord

_WIDE = 10_000  # no terminal, no edge: nothing is cut or wrapped in a pipe

out = Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else _WIDE)
err = Console(markup=False, highlight=False, emoji=False, stderr=True)


def emit(value: Any) -> None:
    """One JSON value on stdout. A number that is none (of no questions, say) is null: JSON has no NaN."""
    sys.stdout.write(json.dumps(_finite(value), allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def line(text: str = "", style: str | None = None) -> None:
    """One line on stdout, left to the terminal to wrap."""
    out.print(plain(text), style=style, soft_wrap=True)


def columns(*names: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    return table


# --- index ----------------------------------------------------------------------------------------------------------


def indexed(manifest: Manifest, *, as_json: bool) -> None:
    indexed_facts(facts(manifest), as_json=as_json)


def facts(manifest: Manifest) -> dict[str, Any]:
    return {
        "video": manifest.video,
        "status": manifest.status,
        "chunks": len(manifest.chunks),
        "covered": asdict(manifest.span),
        "duration_s": manifest.info.duration_s,
        "partial": manifest.info.partial,
        "recipe": manifest.recipe.digest,
        "bytes": {"fine": manifest.size_bytes(Kind.L), "coarse": manifest.size_bytes(Kind.H)},
    }


def indexed_there(job: Job, video: Video, chunks: Sequence[Chunk], *, as_json: bool) -> None:
    """As :func:`indexed`, of what a service has indexed."""
    indexed_facts(facts_there(job, video, chunks), as_json=as_json)


def facts_there(job: Job, video: Video, chunks: Sequence[Chunk]) -> dict[str, Any]:
    return {
        "video": video.id,
        "status": video.status,
        "chunks": video.chunks,
        "covered": asdict(video.covered),
        "duration_s": video.duration_s,
        "partial": video.partial,
        "recipe": video.recipe,
        "bytes": {"fine": sum(c.fine_bytes for c in chunks), "coarse": sum(c.coarse_bytes for c in chunks)},
        "job": job.id,
    }


def indexed_facts(facts: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit(facts)
        return
    fine, coarse = facts["bytes"]["fine"], facts["bytes"]["coarse"]
    line(
        f"{facts['video']}  {facts['chunks']} chunks, {clock(facts['covered']['end_s'])}, "
        f"fine {size(fine)}, coarse {size(coarse)}"
    )
    if facts["partial"]:
        line(f"only a part could be read: {facts['partial']}", style="yellow")


def videos(records: Sequence[VideoRecord], *, as_json: bool) -> None:
    facts = [
        {
            "video": record.video,
            "status": record.status,
            "chunks": record.chunks,
            "covered": asdict(record.covered),
            "duration_s": record.info.duration_s,
            "file": record.source.name if record.source else None,
            "recipe": record.recipe.digest,
        }
        for record in records
    ]
    _videos(facts, as_json=as_json)


def videos_there(found: Sequence[Video], *, as_json: bool) -> None:
    """As :func:`videos`, of what a service has."""
    facts = [
        {
            "video": video.id,
            "status": video.status,
            "chunks": video.chunks,
            "covered": asdict(video.covered),
            "duration_s": video.duration_s,
            "file": video.name,
            "recipe": video.recipe,
        }
        for video in found
    ]
    _videos(facts, as_json=as_json)


def _videos(facts: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        emit(facts)
        return
    table = columns("video", "status", "chunks", "covered", "file", "recipe")
    for row in facts:
        covered = clock(row["covered"]["end_s"])
        table.add_row(row["video"], row["status"], str(row["chunks"]), covered, plain(row["file"] or ""), row["recipe"])
    out.print(table)


def deleted(video: str, freed: int, *, as_json: bool) -> None:
    if as_json:
        emit({"video": video, "freed_bytes": freed})
    else:
        line(f"deleted {video}, {size(freed)} freed")


def decayed(before: Manifest, *, as_json: bool) -> None:
    freed = before.size_bytes(Kind.L)
    if as_json:
        emit({"video": before.video, "freed_bytes": freed})
    else:
        line(f"{before.video} is coarse now, {size(freed)} of fine detail let go; x2l refresh makes it again")


# --- answers --------------------------------------------------------------------------------------------------------


def answers(questions: Sequence[str], given: Sequence[Answer], *, as_json: bool) -> None:
    """One answer as an object, several as a list; people see the question as well when there are several."""
    _notes(given)
    if as_json:
        records = [record(question, answer) for question, answer in zip(questions, given, strict=True)]
        emit(records[0] if len(records) == 1 else records)
        return
    for question, answer in zip(questions, given, strict=True):
        if len(given) > 1:
            line(question, style="dim")
        line(answer.text, style="bold")
        for evidence in answer.evidence:
            line(f"  {_evidence(evidence)}", style="yellow" if evidence.degraded else None)
        line(f"  {_cost(answer)}", style="dim")


def _notes(given: Sequence[Answer]) -> None:
    """What people should know of how chunks were ranked, each once, on stderr."""
    for note in dict.fromkeys(answer.plan.note for answer in given if answer.plan.note):
        err.print(note, style="yellow", soft_wrap=True)


def explained(question: str, answer: Answer, *, as_json: bool) -> None:
    """How an answer came about."""
    _notes([answer])
    if as_json:
        emit(record(question, answer))
        return
    line(question, style="dim")
    line(answer.text, style="bold")
    line()
    for row in strip(answer.plan, min(out.width, 100)):
        line(row)
    line()
    table = columns("chunk", "span", "score", "why", "level", "from", "bytes")
    evidence = {item.chunk: item for item in answer.evidence}
    for chunk in answer.plan.chunks:
        item = evidence.get(chunk.chunk)
        if item is not None:
            table.add_row(
                str(chunk.chunk),
                stretch(chunk.span),
                f"{chunk.score:+.2f}",
                chunk.reason,
                item.level.public + (f" ({item.degraded})" if item.degraded else ""),
                item.tier,
                size(chunk.size_bytes),
            )
    if answer.evidence:
        out.print(table)
    line(f"scorer {answer.plan.scorer}; {_cost(answer)}", style="dim")
    line("  ".join(f"{name.removesuffix('_s')} {s * 1000:.0f} ms" for name, s in answer.timings.items()), style="dim")


def _evidence(evidence: Evidence) -> str:
    text = f"{stretch(evidence.span)}  score {evidence.score:+.2f}"
    if evidence.degraded:
        return f"{text}  answered from its coarse gist: fine detail is {evidence.degraded}"
    return f"{text}  {evidence.level.public} from {evidence.tier}, {size(evidence.size_bytes)}"


def _cost(answer: Answer) -> str:
    usage = answer.usage
    return (
        f"{size(usage.reload_bytes)} loaded, a full cache is {size(usage.full_bytes)} ({share(usage.moved_share)}); "
        f"{usage.kv_entries} of {usage.full_entries} KV entries ({share(usage.kv_share)}); "
        f"{sum(answer.timings.values()):.2f} s"
    )


def record(question: str, answer: Answer) -> dict[str, Any]:
    """An answer as JSON has it."""
    usage = answer.usage
    return {
        "video": answer.video,
        "question": question,
        "text": answer.text,
        "finish": answer.finish,
        "degraded": answer.degraded,
        "covered": asdict(answer.covered) if answer.covered else None,
        "evidence": [_evidence_record(evidence) for evidence in answer.evidence],
        "plan": _plan_record(answer.plan),
        "usage": asdict(usage) | {"kv_share": usage.kv_share, "moved_share": usage.moved_share},
        "timings": dict(answer.timings),
    }


def _plan_record(plan: ReloadPlan) -> dict[str, Any]:
    return {
        "scorer": plan.scorer,
        "note": plan.note,
        "fine": list(plan.fine),
        "reload_bytes": plan.reload_bytes,
        "chunks": [_at(chunk) | {"reason": chunk.reason} for chunk in plan.chunks],
    }


def _evidence_record(evidence: Evidence) -> dict[str, Any]:
    return _at(evidence) | {"tier": evidence.tier, "degraded": evidence.degraded}


def _at(item: PlannedChunk | Evidence) -> dict[str, Any]:
    place: Span = item.span
    level: Level = item.level
    return {
        "chunk": item.chunk,
        "start_s": place.start_s,
        "end_s": place.end_s,
        "level": level.public,
        "score": item.score,
        "size_bytes": item.size_bytes,
    }


# --- the rest -------------------------------------------------------------------------------------------------------


def version(number: str, *, as_json: bool) -> None:
    if as_json:
        emit({"version": number})
    else:
        line(f"x2l_cluster {number}")


def calibrated(found: Calibration, place: Path, *, as_json: bool) -> None:
    if as_json:
        emit(found.to_dict() | {"file": str(place)})
        return
    line("heads (layer.head)  " + ", ".join(f"{layer}.{head}" for layer, head in found.heads))
    for name, value in found.recall:
        line(f"recall, {name}  {percent(value)}")
    line(f"written to {place}")


def findings(found: Sequence[Finding], *, as_json: bool) -> None:
    if as_json:
        emit([asdict(finding) for finding in found])
        return
    for finding in found:
        mark, style = ("✓", "green") if finding.ok else ("–", "yellow") if finding.optional else ("✗", "red")
        line(f"{mark} {finding.what}: {finding.detail}", style=style)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
