"""The commands. Each is a few lines over the engine; ``show`` prints, ``run`` turns errors into exit codes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from x2l_cluster import __version__
from x2l_cluster.cli import opened, progress, show
from x2l_cluster.cli.again import reindex
from x2l_cluster.cli.append import append
from x2l_cluster.cli.archives import export, import_
from x2l_cluster.cli.bench import bench
from x2l_cluster.cli.jobs import jobs
from x2l_cluster.cli.keys import keys
from x2l_cluster.cli.options import (
    AUTO,
    ApiKeys,
    AsJson,
    Data,
    DetailOption,
    FineStore,
    MaxTokens,
    ModelName,
    Question,
    Questions,
    Scorer,
    ScorerOption,
    Store,
    Url,
    VideoFile,
    VideoId,
)
from x2l_cluster.cli.sample import sample
from x2l_cluster.cli.tenants import tenants
from x2l_cluster.errors import VideoFileNotFound
from x2l_cluster.types import LOCAL_TENANT, Sampling

HELP = """
Index a long video once, then ask any number of questions: full detail is reloaded only where a question needs it.

Data goes to stdout, progress and errors to stderr. With `--json` stdout holds exactly one JSON value, also on failure:
`{"error": {"code": …, "message": …, "retryable": …}}`.
"""
EXIT_CODES = """
Exit codes:

- **0** done
- **1** a fault of ours, or a check failed
- **2** wrong usage
- **3** the input cannot be used
- **4** there is no such file, video or model
- **5** try again later
- **130** interrupted
"""

app = typer.Typer(
    name="x2l",
    help=HELP,
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(reindex)
app.command()(export)
app.command("import")(import_)
app.add_typer(bench, name="bench")
app.add_typer(jobs, name="jobs")
app.add_typer(keys, name="keys")
app.add_typer(tenants, name="tenants")


@app.command()
def index(
    file: VideoFile,
    video: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="An id of your choice; by default from the content.")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames looked at a second; by default the model's choice.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Make again what the stores have lost of an index.")] = False,
    model: ModelName = None,
    store: Store = None,
    fine_store: FineStore = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Index a video. What is indexed already is no new work; interrupted, the next run goes on."""
    if not file.exists():
        raise VideoFileNotFound(f"there is no file {file}; give the path of a video")
    if url is not None:
        from x2l_cluster.cli import remote

        remote.alone(url, model=model, store=store, fine_store=fine_store)
        show.indexed_there(*remote.index(url, file, video=video, fps=fps, repair=repair), as_json=as_json)
        return
    recipe: dict[str, Any] = {} if fps is None else {"sampling": Sampling(fps=fps)}
    with (
        opened.engine(model, store, fine_store) as engine,
        opened.interruptible() as cancel,
        progress.chunks(show.err, file.name) as report,
    ):
        manifest = engine.index(file, video=video, repair=repair, progress=report, cancel=cancel, **recipe)
    show.indexed(manifest, as_json=as_json)


app.command()(append)


@app.command()
def ask(
    video: VideoId,
    questions: Questions,
    detail: DetailOption = AUTO,
    scorer: ScorerOption = Scorer.CALIBRATED,
    max_tokens: MaxTokens = 64,
    model: ModelName = None,
    store: Store = None,
    fine_store: FineStore = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Answer questions about a video, with evidence. With `--json`: an object, or a list for several questions."""
    if url is not None:
        from x2l_cluster.cli import remote

        remote.alone(url, model=model, store=store, fine_store=fine_store)
        there = remote.ask(url, video, questions, detail=detail, scorer=scorer, max_tokens=max_tokens)
        show.answers(questions, there, as_json=as_json)
        return
    with opened.engine(model, store, fine_store, video=video) as engine:
        from x2l_cluster.engine import Generation

        answers = engine.ask_many(
            [(video, question) for question in questions],
            detail=detail,
            scorer=scorer,
            generation=Generation(max_tokens=max_tokens),
        )
    show.answers(questions, answers, as_json=as_json)


@app.command()
def explain(
    video: VideoId,
    question: Question,
    detail: DetailOption = AUTO,
    scorer: ScorerOption = Scorer.CALIBRATED,
    model: ModelName = None,
    store: Store = None,
    fine_store: FineStore = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question and show how: the score of every chunk, what came back in full detail, bytes and seconds."""
    if url is not None:
        from x2l_cluster.cli import remote

        remote.alone(url, model=model, store=store, fine_store=fine_store)
        (there,) = remote.ask(url, video, [question], detail=detail, scorer=scorer)
        show.explained(question, there, as_json=as_json)
        return
    with opened.engine(model, store, fine_store, video=video) as engine:
        answer = engine.ask(video, question, detail=detail, scorer=scorer)
    show.explained(question, answer, as_json=as_json)


@app.command()
def search(
    question: Question,
    among: Annotated[
        list[str] | None, typer.Option("--video", metavar="ID", help="Only in this one; repeatable. By default all.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Moments at most.")] = 10,
    model: ModelName = None,
    store: Store = None,
    fine_store: FineStore = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Find moments that fit a question, over all indexed videos."""
    from x2l_cluster.cli.show_service import found

    if url is not None:
        from x2l_cluster.cli import remote

        remote.alone(url, model=model, store=store, fine_store=fine_store)
        moments = remote.search(url, question, among or (), limit=limit)
    else:
        with opened.engine(model, store, fine_store) as engine:
            from x2l_cluster.service.engine_worker import EngineWorker
            from x2l_cluster.service.requests import SearchRequest

            request = SearchRequest(question=question, videos=tuple(among or ()), limit=limit)
            moments = EngineWorker(engine).search(LOCAL_TENANT, request)
    found(moments, as_json=as_json)


@app.command()
def videos(store: Store = None, url: Url = None, as_json: AsJson = False) -> None:
    """List indexed videos."""
    if url is not None:
        from x2l_cluster.cli import remote

        remote.alone(url, store=store)
        show.videos_there(remote.videos(url), as_json=as_json)
        return
    with opened.state(store) as state:
        records = state.videos(LOCAL_TENANT)
    show.videos(records, as_json=as_json)


@app.command()
def delete(
    video: VideoId, store: Store = None, fine_store: FineStore = None, url: Url = None, as_json: AsJson = False
) -> None:
    """Delete a video: its index, its blocks, its kept source."""
    if url is not None:
        from x2l_cluster.cli import remote

        remote.alone(url, store=store, fine_store=fine_store)
        show.deleted(video, remote.delete(url, video), as_json=as_json)
        return
    with opened.stores(store, fine_store) as stores:
        freed = stores.delete_video(LOCAL_TENANT, video)
    show.deleted(video, freed, as_json=as_json)


@app.command()
def up(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, envvar="X2L_PORT", help="0 takes a free one (X2L_PORT).")
    ] = 8421,
    api_keys: Annotated[
        ApiKeys | None, typer.Option(help="Whether callers must show a key (X2L_API_KEYS); by default not.")
    ] = None,
    root: Annotated[
        list[Path] | None, typer.Option(metavar="PATH", help="A folder that jobs may read files from; repeatable.")
    ] = None,
    model: ModelName = None,
    data: Data = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Workers on Ray index and answer, each a process of its own.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="The same on a Ray cluster that runs, whose nodes see this machine's files.")
    ] = None,
    while_read: Annotated[
        bool, typer.Option("--while-read", help="Stop, too, when standard input ends: with whoever started it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the whole service up on this machine until Ctrl-C. With `--json`: an object with its URL when it is up."""
    from x2l_cluster.cli.up import serve

    serve(
        host=host,
        port=port,
        api_keys=api_keys.value if api_keys else None,
        roots=root or (),
        model=model,
        data=data,
        ray=ray,
        address=address,
        while_read=while_read,
        as_json=as_json,
    )


@app.command()
def decay(video: VideoId, store: Store = None, fine_store: FineStore = None, as_json: AsJson = False) -> None:
    """Let go of a video's fine detail. It is answered from its coarse gist until `x2l refresh` makes it again."""
    with opened.stores(store, fine_store) as stores:
        before = stores.state.manifest(LOCAL_TENANT, video)
        stores.decay(before)
    show.decayed(before, as_json=as_json)


@app.command()
def refresh(
    video: VideoId,
    model: ModelName = None,
    store: Store = None,
    fine_store: FineStore = None,
    as_json: AsJson = False,
) -> None:
    """Make again, from its kept file, what the stores have lost or let go of a video."""
    with (
        opened.engine(model, store, fine_store, video=video) as engine,
        opened.interruptible() as cancel,
        progress.chunks(show.err, video) as report,
    ):
        manifest = engine.refresh(video, progress=report, cancel=cancel)
    show.indexed(manifest, as_json=as_json)


@app.command()
def calibrate(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Bundled name, folder, or owner/name (X2L_MODEL).")
    ] = None,
    probes: Annotated[int, typer.Option("--videos", min=2, help="Synthetic probe videos of each length.")] = 24,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Where it goes; by default beside the weights.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the attention heads that retrieve, and how sure `auto` may be, on synthetic probes."""
    wanted = opened.settings()
    name = model or wanted.model
    with opened.loading(name):
        from x2l_cluster.calibrate import calibrate as find
        from x2l_cluster.engine.calibrated import CALIBRATIONS
        from x2l_cluster.models.registry import find_checkpoint, load_model

        lm = load_model(name, device=wanted.device, dtype=wanted.dtype)
        beside = find_checkpoint(name)
    mine = CALIBRATIONS.expanduser() / f"{lm.spec.weights}.json"
    place = out or (beside / "calibration.json" if os.access(beside, os.W_OK) else mine)
    with progress.steps(show.err, "probe videos") as report:
        found = find(lm, videos=probes, progress=report)
    place.parent.mkdir(parents=True, exist_ok=True)
    found.save(place)
    show.calibrated(found, place, as_json=as_json)


@app.command()
def capacity(
    hours: Annotated[float, typer.Option(min=0.1, help="Hours of video that are kept.")],
    fine_hours: Annotated[float | None, typer.Option(min=0, help="Of them in full detail; by default all.")] = None,
    hot_hours: Annotated[float, typer.Option(min=0, help="Of them asked about at a time, an answer worker.")] = 1.0,
    daily_hours: Annotated[float, typer.Option(min=0, help="Hours that are indexed a day.")] = 24.0,
    chunk_s: Annotated[float | None, typer.Option(min=0, help="Seconds a chunk takes to be indexed.")] = None,
    fine_chunks: Annotated[int, typer.Option(min=0, help="Fine chunks of a question.")] = 4,
    frame: Annotated[tuple[int, int], typer.Option(metavar="WIDTH HEIGHT", help="Pixels.")] = (1280, 720),
    model: ModelName = None,
    as_json: AsJson = False,
) -> None:
    """How much memory and disk, and how many GPUs, so many hours of video need. Prefills one chunk to measure it."""
    with opened.unkept(model) as engine:
        from x2l_cluster.cli import show_capacity
        from x2l_cluster.service.capacity import capacity as needed
        from x2l_cluster.service.engine_worker import EngineWorker
        from x2l_cluster.service.requests import EstimateRequest

        wanted = EstimateRequest(duration_s=3600.0, width=frame[0], height=frame[1])
        one = EngineWorker(engine).estimate(wanted, chunk_s)
    found = needed(
        one,
        hours=hours,
        fine_hours=hours if fine_hours is None else fine_hours,
        hot_hours=min(hot_hours, hours),
        daily_hours=daily_hours,
        fine_chunks=fine_chunks,
    )
    show_capacity.capacity(found, as_json=as_json)


@app.command()
def doctor(model: ModelName = None, store: Store = None, as_json: AsJson = False) -> None:
    """Check that everything is here, by doing a little of each real thing. Exit code 1 if something needed is not."""
    from x2l_cluster.cli.doctor import examine

    wanted = opened.settings()
    with show.err.status("looking"):
        findings = examine(
            model or wanted.model,
            store or wanted.store,
            fine=wanted.fine_store,
            state=wanted.state,
            sources=wanted.sources,
        )
    show.findings(findings, as_json=as_json)
    if not all(finding.ok or finding.optional for finding in findings):
        raise typer.Exit(1)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(metavar="PATH", help="Where videos and indexes are kept.")] = Path(
        "demo-data"
    ),
    model: ModelName = None,
    as_json: AsJson = False,
) -> None:
    """Render two videos, bring a service up for them, index them, ask questions of every kind, and stop it."""
    from x2l_cluster.cli import show_demo
    from x2l_cluster.cli.demo import Demo

    played = Demo(folder, model, show.err)
    for told in played.run():
        show_demo.told(told, as_json=as_json)
    show_demo.ended(played, as_json=as_json)
    if not played.good:
        raise typer.Exit(1)


app.command()(sample)


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version."""
    show.version(__version__, as_json=as_json)
