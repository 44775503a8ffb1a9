"""Progress on stderr: a bar on a terminal, a line a step in a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from x2l_cluster.cli.text import clock, size

if TYPE_CHECKING:
    from x2l_cluster.engine import Progress as Sealed

Report = Callable[[int, int], None]
"""Takes how many are done, and of how many."""


@contextmanager
def steps(console: Console, what: str) -> Iterator[Callable[..., None]]:
    """Yields ``report(done, total, note="")``."""
    if not console.is_terminal:
        yield lambda done, total, note="": console.print(f"{what}: {done} of {total}{note}", soft_wrap=True)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, note="": bar.update(task, description=what + note, total=total, completed=done)


@contextmanager
def chunks(console: Console, what: str) -> Iterator[Callable[[Sealed], None]]:
    """Yields what the engine reports sealed chunks to."""
    with steps(console, what) as report:
        yield lambda event: report(
            event.chunk + 1,
            event.chunks,
            f", up to {clock(event.end_s)}{' (kept from before)' if event.resumed else ''}",
        )


@contextmanager
def sent(console: Console, what: str) -> Iterator[Report]:
    """Yields what an upload reports to; a log only gets a line when all is sent."""
    if not console.is_terminal:
        yield lambda done, total: console.print(f"{what}: sent {size(total)}") if done == total else None
        return
    columns = (TextColumn("sending {task.description}", markup=False), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, total=total, completed=done)
