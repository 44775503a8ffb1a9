"""``x2l append``: a recording that has grown, or that still grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Final

import typer

from x2l_cluster.cli import opened, progress, show
from x2l_cluster.cli.options import AsJson, FineStore, ModelName, Store, Url, VideoId
from x2l_cluster.errors import VideoFileNotFound

_LOOK_S: Final = 0.5
"""How often the size of a file that is followed is looked at."""

GrownFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="The recording as it is by now: what was indexed, and what came since.")
]


def append(
    video: VideoId,
    file: GrownFile,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on while the file grows, until it has not for --quiet seconds.")
    ] = False,
    quiet: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Ends --follow.")] = 60.0,
    every: Annotated[float, typer.Option(min=0.0, metavar="SECONDS", help="Between two looks with --follow.")] = 10.0,
    model: ModelName = None,
    store: Store = None,
    fine_store: FineStore = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Go on with an indexed video whose recording has grown. What is indexed stays, and can be asked about meanwhile.

    With --url the file is sent whole each time.
    """
    if not file.exists():
        raise VideoFileNotFound(f"there is no file {file}; give the path of the recording")
    if url is not None:
        from x2l_cluster.cli import remote

        remote.alone(url, model=model, store=store, fine_store=fine_store)
        for _ in _passes(file, follow=follow, every_s=every, quiet_s=quiet):
            job, now, chunks = remote.append(url, video, file)
        show.indexed_there(job, now, chunks, as_json=as_json)
        return
    with opened.engine(model, store, fine_store, video=video) as engine, opened.interruptible() as cancel:
        looks = _passes(file, follow=follow, every_s=every, quiet_s=quiet, wait=cancel.wait)
        with closing(looks):
            for _ in looks:
                with progress.chunks(show.err, file.name) as report:
                    manifest = engine.append(video, file, progress=report, cancel=cancel)
                if cancel.is_set():  # it came too late to stop anything, and nothing more is wanted
                    break
    show.indexed(manifest, as_json=as_json)


def _passes(
    file: Path, *, follow: bool, every_s: float, quiet_s: float, wait: Callable[[float], object] = time.sleep
) -> Generator[int]:
    if not follow:
        yield file.stat().st_size
        return
    yield from growths(lambda: file.stat().st_size, every_s=every_s, quiet_s=quiet_s, wait=wait)


def growths(
    size: Callable[[], int],
    *,
    every_s: float,
    quiet_s: float,
    wait: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[int]:
    """Yields a size at once, then each time it has grown, ``every_s`` apart at least; ends when it has not grown for
    ``quiet_s``, or when ``wait`` says that it was cut short."""
    seen = -1
    while True:
        since_s, now = clock(), size()
        while now == seen:
            if clock() - since_s >= quiet_s or wait(min(_LOOK_S, quiet_s)):
                return
            now = size()
        seen, begun_s = now, clock()
        yield now
        left_s = begun_s + every_s - clock()
        if left_s > 0 and wait(left_s):
            return
