"""The commands. Each is a few lines over the engine; what they print lives in ``show``.

Exit codes: 0 done; 1 a fault of ours; 2 wrong usage; 3 the input cannot be used (a file, a question, a model); 4 no
such thing; 5 try again later (a store is away, KVs are gone); 130 interrupted.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console

from x2l_cluster.cli import show
from x2l_cluster.errors import Cancelled, InvalidInput, ModelError, NotFound, VideoError, X2LError
from x2l_cluster.settings import Settings

app = typer.Typer(
    name="x2l",
    help="Index a long video once, then ask any number of questions; full detail is reloaded only where needed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
bench = typer.Typer(help="The yardsticks.", no_args_is_help=True)
app.add_typer(bench, name="bench")
err = Console(stderr=True)

Model = Annotated[str | None, typer.Option("--model", help="bundled name, folder, or owner/name  [env: X2L_MODEL]")]
Store = Annotated[str | None, typer.Option("--store", help="disk:PATH or memory:  [env: X2L_STORE]")]
Fine = Annotated[str | None, typer.Option("--fine-store", help="redis://…, valkey://… or unix://… for fine blocks")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
DetailOption = Annotated[str, typer.Option("--detail", help="auto, coarse, fine, k=N or budget=BYTES")]
ScorerOption = Annotated[str, typer.Option("--scorer", help="calibrated, coarse, attention_mean, embedding, random, …")]


def run() -> None:
    """Runs a command and turns errors into exit codes."""
    try:
        app(standalone_mode=False)
    except X2LError as error:
        err.print(f"[red]{error.code}[/red]: ", end="")
        err.print(str(error), markup=False, highlight=False)
        sys.exit(_exit_code(error))
    except typer.TyperException as error:  # type: ignore[attr-defined,unused-ignore]
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        err.print("interrupted")
        sys.exit(130)


def _exit_code(error: X2LError) -> int:
    if isinstance(error, Cancelled):
        return 130
    if isinstance(error, NotFound):
        return 4
    if isinstance(error, InvalidInput | VideoError | ModelError):
        return 3
    return 5 if error.retryable else 1


@contextmanager
def _engine(model: str | None, store: str | None, fine: str | None) -> Iterator[Any]:
    from x2l_cluster.engine import VideoEngine

    settings = Settings()
    with VideoEngine.from_pretrained(
        model or settings.model,
        store=store or settings.store,
        fine_store=fine or settings.fine_store,
        device=settings.device,
        dtype=settings.dtype,
        cache_bytes=settings.cache_bytes,
        decode_deadline_s=settings.decode_deadline_s,
    ) as engine:
        yield engine


@app.command()
def index(
    path: Annotated[Path, typer.Argument(help="a video file")],
    video: Annotated[str | None, typer.Option("--id", help="an id of your choice; by default from the content")] = None,
    fps: Annotated[float | None, typer.Option(help="frames looked at a second (default: the model's)")] = None,
    model: Model = None,
    store: Store = None,
    fine_store: Fine = None,
    as_json: AsJson = False,
) -> None:
    """Index a video. Interrupted, it goes on where it stopped."""
    from x2l_cluster.types import Sampling

    recipe: dict[str, Any] = {} if fps is None else {"sampling": Sampling(fps=fps)}
    cancel = threading.Event()
    with _engine(model, store, fine_store) as engine, _interrupt(cancel), show.progress(err) as report:
        manifest = engine.index(path, video=video, progress=report, cancel=cancel, **recipe)
    show.indexed(manifest, as_json=as_json)


@app.command()
def ask(
    video: Annotated[str, typer.Argument(help="id of an indexed video")],
    question: Annotated[str, typer.Argument(help="the question")],
    detail: DetailOption = "auto",
    scorer: ScorerOption = "calibrated",
    max_tokens: Annotated[int, typer.Option(help="longest answer")] = 64,
    model: Model = None,
    store: Store = None,
    fine_store: Fine = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question about a video, with evidence."""
    from x2l_cluster.engine import Generation

    with _engine(model, store, fine_store) as engine:
        answer = engine.ask(video, question, detail=detail, scorer=scorer, generation=Generation(max_tokens=max_tokens))
    show.answer(answer, as_json=as_json)


@app.command()
def explain(
    video: Annotated[str, typer.Argument(help="id of an indexed video")],
    question: Annotated[str, typer.Argument(help="the question")],
    detail: DetailOption = "auto",
    scorer: ScorerOption = "calibrated",
    model: Model = None,
    store: Store = None,
    fine_store: Fine = None,
    as_json: AsJson = False,
) -> None:
    """Show scores and plan of a question: which moments would be re-read in full detail, and what that costs."""
    with _engine(model, store, fine_store) as engine:
        answer = engine.ask(video, question, detail=detail, scorer=scorer)
    show.explained(answer, as_json=as_json)


@app.command()
def videos(store: Store = None, as_json: AsJson = False) -> None:
    """List indexed videos."""
    from x2l_cluster.engine.stores import Stores
    from x2l_cluster.types import LOCAL_TENANT

    stores = Stores.open(store or Settings().store)
    try:
        show.videos(stores.state.videos(LOCAL_TENANT), as_json=as_json)
    finally:
        stores.close()


@app.command()
def delete(
    video: Annotated[str, typer.Argument(help="id of an indexed video")],
    model: Model = None,
    store: Store = None,
    fine_store: Fine = None,
    as_json: AsJson = False,
) -> None:
    """Delete a video: its index, its blocks, its kept source."""
    with _engine(model, store, fine_store) as engine:
        freed = engine.delete(video)
    show.deleted(video, freed, as_json=as_json)


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="bundled name, folder, or owner/name")] = "reference",
    videos_: Annotated[int, typer.Option("--videos", help="synthetic probe videos")] = 12,
    out: Annotated[
        Path | None, typer.Option(help="where the calibration goes (default: beside the checkpoint)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the attention heads that retrieve, and the threshold of `auto`, on synthetic probes."""
    from x2l_cluster.calibrate import calibrate as find
    from x2l_cluster.models import load_model
    from x2l_cluster.models.registry import find_checkpoint

    settings = Settings()
    folder = find_checkpoint(model)
    lm = load_model(model, device=settings.device, dtype=settings.dtype)
    with show.counter(err, "probe videos") as report:
        found = find(lm, videos=videos_, progress=report)
    place = out or folder / "calibration.json"
    found.save(place)
    show.calibrated(found, place, as_json=as_json)


@app.command()
def doctor(model: Model = None, store: Store = None, as_json: AsJson = False) -> None:
    """Check that everything the engine needs is here."""
    from x2l_cluster.cli.doctor import examine

    settings = Settings()
    findings = examine(model or settings.model, store or settings.store)
    show.findings(findings, as_json=as_json)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="where videos and indexes are kept")] = Path("demo-data"),
    as_json: AsJson = False,
) -> None:
    """Render two videos, index them (fine blocks into an embedded Valkey), ask questions of every kind."""
    from x2l_cluster.cli.demo import play

    show.demo(play(folder, err), as_json=as_json)


@bench.command("needles")
def bench_needles(
    chunks: Annotated[int, typer.Option(help="length of the videos, in chunks")] = 12,
    questions: Annotated[int, typer.Option(help="questions a kind for most policies")] = 500,
    deep: Annotated[int, typer.Option(help="questions a kind for full and x2l_auto")] = 2000,
    model: Annotated[str, typer.Option(help="bundled name, folder, or owner/name")] = "reference",
    seed: Annotated[int, typer.Option(help="first evaluation seed")] = 0,
    as_json: AsJson = False,
) -> None:
    """Questions about needles in decoded mp4 files, under every policy."""
    from x2l_cluster.bench.needles import run_needles

    settings = Settings()
    with show.counter(err, "videos") as report:
        result = run_needles(
            model,
            chunks=chunks,
            questions=questions,
            deep=deep,
            seed=seed,
            device=settings.device,
            dtype=settings.dtype,
            progress=report,
        )
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        show.needles(result)


@contextmanager
def _interrupt(cancel: threading.Event) -> Iterator[None]:
    """The first Ctrl-C stops at the next chunk boundary, the second at once."""

    def asked(_number: int, _frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()
        err.print("stopping at the next chunk boundary; sealed chunks are kept (Ctrl-C again to stop at once)")

    before = signal.signal(signal.SIGINT, asked)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
