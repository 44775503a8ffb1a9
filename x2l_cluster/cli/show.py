"""What people see: tables and strips on stdout, progress on stderr; the same facts as JSON on request."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from x2l_cluster.types import Answer, Level, Manifest, ReloadPlan

if TYPE_CHECKING:
    from x2l_cluster.engine.index import Progress as Sealed
    from x2l_cluster.select import Calibration
    from x2l_cluster.state import VideoRecord

out = Console()
_BARS = "▁▂▃▄▅▆▇█"


def emit(value: Any) -> None:
    """One JSON value on stdout."""
    sys.stdout.write(json.dumps(value, default=str) + "\n")


def clock(seconds: float) -> str:
    """``1:02:03.5`` or ``02:03.5``."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes:02d}:{rest:04.1f}"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


# --- progress -------------------------------------------------------------------------------------------------------


@contextmanager
def progress(console: Console) -> Iterator[Callable[[Sealed], None]]:
    """A bar of sealed chunks; takes the engine's progress events."""
    with _bar(console) as bar:
        task = bar.add_task("opening", total=None)

        def report(event: Sealed) -> None:
            bar.update(
                task,
                description=f"{event.video}: up to {clock(event.end_s)}{' (resumed)' if event.resumed else ''}",
                total=event.chunks,
                completed=event.chunk + 1,
            )

        yield report


@contextmanager
def counter(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of (done, of how many)."""
    with _bar(console) as bar:
        task = bar.add_task(what, total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield report


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


# --- index ----------------------------------------------------------------------------------------------------------


def indexed(manifest: Manifest, *, as_json: bool) -> None:
    record = {
        "video": manifest.video,
        "status": manifest.status,
        "chunks": len(manifest.chunks),
        "duration_s": manifest.info.duration_s,
        "partial": manifest.info.partial,
        "recipe": manifest.recipe.digest,
        "bytes": {"fine": manifest.size_bytes("l"), "coarse": manifest.size_bytes("h")},
    }
    if as_json:
        emit(record)
        return
    out.print(
        f"[bold]{manifest.video}[/bold]  {len(manifest.chunks)} chunks, {clock(manifest.span.end_s)}, "
        f"fine {size(manifest.size_bytes('l'))}, coarse {size(manifest.size_bytes('h'))}"
    )
    if manifest.info.partial:
        out.print(f"[yellow]partial[/yellow]: {manifest.info.partial}", highlight=False)


def videos(records: Sequence[VideoRecord], *, as_json: bool) -> None:
    if as_json:
        emit(
            [
                {
                    "video": record.video,
                    "status": record.status,
                    "chunks": record.chunks,
                    "covered_s": record.covered.end_s,
                    "name": record.source.name if record.source else None,
                    "recipe": record.recipe.digest,
                }
                for record in records
            ]
        )
        return
    table = Table("video", "status", "chunks", "covered", "file", "recipe", box=None)
    for record in records:
        name = record.source.name if record.source else ""
        table.add_row(
            record.video, record.status, str(record.chunks), clock(record.covered.end_s), name, record.recipe.digest
        )
    out.print(table)


def deleted(video: str, freed: int, *, as_json: bool) -> None:
    if as_json:
        emit({"video": video, "freed_bytes": freed})
    else:
        out.print(f"deleted {video}, {size(freed)} freed")


# --- answers --------------------------------------------------------------------------------------------------------


def answer_record(answer: Answer) -> dict[str, Any]:
    """An answer as JSON has it."""
    return {
        "text": answer.text,
        "video": answer.video,
        "finish": answer.finish,
        "degraded": answer.degraded,
        "evidence": [asdict(evidence) for evidence in answer.evidence],
        "plan": plan_record(answer.plan),
        "usage": asdict(answer.usage) | {"kv_share": answer.usage.kv_share, "moved_share": answer.usage.moved_share},
        "timings": dict(answer.timings),
        "covered": asdict(answer.covered) if answer.covered else None,
    }


def plan_record(plan: ReloadPlan) -> dict[str, Any]:
    return {
        "scorer": plan.scorer,
        "fine": plan.fine,
        "reload_bytes": plan.reload_bytes,
        "chunks": [asdict(chunk) for chunk in plan.chunks],
    }


def answer(answer: Answer, *, as_json: bool) -> None:
    if as_json:
        emit(answer_record(answer))
        return
    out.print(answer.text, markup=False, highlight=False, style="bold")
    for evidence in answer.evidence:
        note = f"  [yellow]degraded: {evidence.degraded}[/yellow]" if evidence.degraded else ""
        out.print(
            f"  {clock(evidence.span.start_s)}–{clock(evidence.span.end_s)}  score {evidence.score:+.2f}  "
            f"{evidence.level.public} from {evidence.tier}, {size(evidence.size_bytes)}{note}",
            highlight=False,
        )
    out.print(_cost(answer), style="dim", highlight=False)


def _cost(answer: Answer) -> str:
    usage = answer.usage
    return (
        f"  KV: {usage.kv_entries} of {usage.full_entries} entries ({usage.kv_share:.0%}), "
        f"{size(usage.reload_bytes)} reloaded of {size(usage.full_bytes)} ({usage.moved_share:.1%}); "
        f"{sum(answer.timings.values()):.2f} s"
    )


def strip(plan: ReloadPlan) -> str:
    """Scores as a row of bars, one a chunk; chunks that come back fine are marked below."""
    scores = [chunk.score for chunk in plan.chunks]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    spread = (high - low) or 1.0
    bars = "".join(_BARS[round((score - low) / spread * (len(_BARS) - 1))] for score in scores)
    marks = "".join("▲" if chunk.level is Level.L else "·" for chunk in plan.chunks)
    return f"{bars}\n{marks}"


def explained(answer: Answer, *, as_json: bool) -> None:
    if as_json:
        emit(answer_record(answer))
        return
    plan = answer.plan
    out.print(strip(plan), highlight=False)
    table = Table("chunk", "span", "score", "level", "why", "bytes", box=None)
    for chunk in plan.chunks:
        if chunk.level is Level.L:
            table.add_row(
                str(chunk.chunk),
                f"{clock(chunk.span.start_s)}–{clock(chunk.span.end_s)}",
                f"{chunk.score:+.2f}",
                chunk.level.public,
                chunk.reason,
                size(chunk.size_bytes),
            )
    out.print(table)
    out.print(f"scorer {plan.scorer}, {size(plan.reload_bytes)} to reload", highlight=False)
    out.print("  ".join(f"{name} {seconds:.3f}" for name, seconds in answer.timings.items()), highlight=False)
    out.print("answer: ", end="", style="dim")
    out.print(answer.text, markup=False, highlight=False)


# --- the rest -------------------------------------------------------------------------------------------------------


def calibrated(found: Calibration, place: Path, *, as_json: bool) -> None:
    if as_json:
        emit(found.to_dict() | {"file": str(place)})
        return
    heads = ", ".join(f"{layer}.{head}" for layer, head in found.heads)
    out.print(f"heads (layer.head) {heads}; recall {found.recall}", highlight=False)
    out.print(f"written to {place}", highlight=False)


def findings(results: Sequence[Any], *, as_json: bool) -> None:
    if as_json:
        emit([asdict(result) for result in results])
        return
    for result in results:
        mark = "[green]ok[/green]  " if result.ok else "[red]fail[/red]"
        out.print(f"{mark} {result.what}: {result.detail}", highlight=False)


def demo(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        emit(list(rows))
        return
    table = Table("", "question", "answer", "expected", "evidence", "KV loaded", "full cache", "share", box=None)
    for row in rows:
        table.add_row(
            "[green]✓[/green]" if row["right"] else "[red]✗[/red]",
            str(row["question"]),
            str(row["answer"]),
            str(row["expected"]),
            str(row["evidence"]),
            size(row["kv_bytes"]),
            size(row["full_bytes"]),
            f"{row['kv_share']:.0%}",
        )
    out.print(table)
    right = sum(bool(row["right"]) for row in rows)
    out.print(f"{right} of {len(rows)} right", highlight=False)


def needles(result: Mapping[str, Any]) -> None:
    kinds = list(result["n"])
    table = Table("policy", *kinds, "kv share", "moved share", title=f"needles, {result['chunks']} chunks", box=None)
    for name, row in result["policies"].items():
        table.add_row(
            name, *(_percent(row[kind]) for kind in kinds), f"{row['kv_share']:.3f}", f"{row['moved_share']:.4f}"
        )
    out.print(table)
    table = Table("scorer", "recall@1", "@2", "@3", "given coarse wrong", box=None)
    for name, row in result["recall"].items():
        table.add_row(name, *(_percent(row[key]) for key in ("1", "2", "3", "given_coarse_wrong")))
    out.print(table)
    table = Table("paired difference (95 %)", *kinds, box=None)
    for name, rows in result["paired"].items():
        table.add_row(name, *(f"{r['difference']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}]" for r in rows.values()))
    out.print(table)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
