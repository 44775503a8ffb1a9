"""Times, sizes and scores as people read them."""

from __future__ import annotations

from collections.abc import Iterator

from x2l_cluster.types import Level, ReloadPlan, Span

_BARS = "▁▂▃▄▅▆▇█"


def clock(seconds: float) -> str:
    """``02:03``, ``02:03.5`` or ``1:02:03``: to a tenth of a second, where there is one."""
    whole, tenth = divmod(round(seconds * 10), 10)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
    return f"{text}.{tenth}" if tenth else text


def stretch(span: Span) -> str:
    """``00:32–00:48``."""
    return f"{clock(span.start_s)}–{clock(span.end_s)}"


def size(count: float) -> str:
    """Bytes in decimal units: ``999 B``, ``1.5 MB``."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB"):
        count /= 1000
        if round(count, 1) < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"


def share(part: float) -> str:
    """``12 %``, and a digit more where it is small: ``1.3 %``."""
    return f"{part:.0%}" if part >= 0.1 or part == 0 else f"{part:.1%}"


def plain(text: str) -> str:
    """Without what moves a terminal's cursor or changes its colours: models and file names may contain it."""
    return "".join(c if c.isprintable() else "\n" if c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def strip(plan: ReloadPlan, width: int = 80) -> Iterator[str]:
    """Scores as rows of bars, one bar a chunk, ``▲`` under chunks that come back fine; rows start with their time."""
    scores = [chunk.score for chunk in plan.chunks]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    step = (high - low) / (len(_BARS) - 1) or 1.0
    margin = max((len(clock(chunk.span.start_s)) for chunk in plan.chunks), default=0) + 1
    room = max(1, width - margin)
    for start in range(0, len(plan.chunks), room):
        row = plan.chunks[start : start + room]
        yield clock(row[0].span.start_s).ljust(margin) + "".join(_BARS[round((c.score - low) / step)] for c in row)
        yield " " * margin + "".join("▲" if c.level is Level.L else "·" for c in row)
