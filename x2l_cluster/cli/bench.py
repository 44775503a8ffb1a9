"""``x2l bench``: the yardsticks."""

from __future__ import annotations

from typing import Annotated

import typer

from x2l_cluster.cli import opened, progress, show
from x2l_cluster.cli.options import AsJson, ModelName, Transport

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
