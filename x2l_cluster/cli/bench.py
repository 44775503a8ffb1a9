"""``x2l bench``: the yardsticks."""

from __future__ import annotations

from typing import Annotated

import typer

from x2l_cluster.cli import opened, progress, show
from x2l_cluster.cli.options import AsJson, MaxTokens, ModelName, Transport, Url

bench = typer.Typer(help="The yardsticks.", no_args_is_help=True)


@bench.command("needles")
def needles(
    chunks: Annotated[int, typer.Option(min=1, help="Length of the videos, in chunks.")] = 12,
    questions: Annotated[int, typer.Option(min=1, help="Questions of a kind for most policies.")] = 500,
    deep: Annotated[int, typer.Option(min=1, help="Questions of a kind for `full` and `x2l_auto`.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="First evaluation seed.")] = 0,
    faults: Annotated[
        str | None,
        typer.Option(metavar="PLAN", help="What goes wrong with stored blocks on purpose: seed=7,flip=0.05,kinds=l."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Videos at a time; by default up to 4 on a CPU, one a GPU.")
    ] = None,
    model: ModelName = None,
    as_json: AsJson = False,
) -> None:
    """Questions about needles in decoded mp4 files, under every policy."""
    from x2l_cluster.bench.needles import run_needles
    from x2l_cluster.cli import show_bench

    wanted = opened.settings()
    with progress.steps(show.err, "videos") as report:
        result = run_needles(
            model or wanted.model,
            chunks=chunks,
            questions=questions,
            deep=deep,
            seed=seed,
            faults=faults,
            device=wanted.device,
            dtype=wanted.dtype,
            workers=workers,
            progress=report,
        )
    show_bench.needles(result, as_json=as_json)


@bench.command("reload")
def reload(
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved turns; figures are medians.")] = 40,
    transport: Annotated[Transport, typer.Option(help="How the embedded server is reached.")] = Transport.UNIX,
    as_json: AsJson = False,
) -> None:
    """Ways of getting bytes out of Redis/Valkey, side by side: memcpy, a bare socket, our client, redis-py."""
    from x2l_cluster.bench.reload import run_reload
    from x2l_cluster.cli import show_bench

    with show.err.status("measuring"):
        result = run_reload(repeats=repeats, transport=transport)
    show_bench.reload(result, as_json=as_json)


@bench.command()
def device(
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved turns; figures are medians.")] = 60,
    as_json: AsJson = False,
) -> None:
    """From the host arena to a GPU, beside pinned and ordinary memory."""
    from x2l_cluster.bench.device import run_device
    from x2l_cluster.cli import show_bench

    with show.err.status("measuring"):
        result = run_device(repeats=repeats)
    show_bench.device(result, as_json=as_json)


@bench.command("serve")
def serve(
    videos: Annotated[int, typer.Option(min=1, help="Videos of needles to index and ask about.")] = 8,
    chunks: Annotated[int, typer.Option(min=1, help="Length of the videos, in chunks.")] = 12,
    zipf: Annotated[float, typer.Option(min=0.0, help="How unlike the videos are in popularity; 0: all alike.")] = 1.0,
    people: Annotated[int, typer.Option(min=1, help="Who ask again as soon as they are answered (closed loop).")] = 16,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="Questions a second that come anyway (open loop); by default 70 % of the closed loop's."
        ),
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="Questions of each loop.")] = 64,
    max_tokens: MaxTokens = 64,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds of one question at a time against sixteen.")] = 7,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch on a CPU, for all of it.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of videos, questions and arrivals.")] = 0,
    model: ModelName = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """A crowd asks a service, one in this process or one at a URL: throughput, waiting times, what a batch is worth."""
    from x2l_cluster.bench.serve import Load, run_serve
    from x2l_cluster.cli import remote, show_bench

    if url is not None:
        remote.alone(url, model=model)
    load = Load(
        videos=videos,
        chunks=chunks,
        zipf=zipf,
        people=people,
        rate=rate,
        questions=questions,
        max_tokens=max_tokens,
        rounds=rounds,
        threads=threads,
        seed=seed,
    )
    wanted = opened.settings()
    with show.err.status("measuring") as status:
        result = run_serve(
            load,
            url=url,
            model=model or wanted.model,
            device=wanted.device,
            dtype=wanted.dtype,
            progress=status.update,
        )
    show_bench.serve(result, as_json=as_json)
