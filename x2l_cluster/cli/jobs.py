"""``x2l jobs``: what a service is indexing, and has."""

from __future__ import annotations

from typing import Annotated

import typer

from x2l_cluster.cli.options import AsJson, Url

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job, as `x2l jobs list` has it.")]

jobs = typer.Typer(
    help="Indexing jobs of a service (`--url`; by default where `x2l up` listens).", no_args_is_help=True
)


@jobs.command("list")
def list_(url: Url = None, as_json: AsJson = False) -> None:
    """List jobs, newest first."""
    from x2l_cluster.cli import show_service
    from x2l_cluster.client import X2L

    with X2L(url) as x2l:
        show_service.jobs(x2l.jobs(), as_json=as_json)


@jobs.command()
def watch(job: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """Show the progress of a job until it ends. Ctrl-C leaves it alone."""
    from x2l_cluster.cli import remote, show_service
    from x2l_cluster.client import X2L

    with X2L(url) as x2l:
        show_service.job(remote.watched(x2l, job, job, url=url), as_json=as_json)


@jobs.command()
def cancel(job: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """Stop a job at its next chunk; what is sealed is kept."""
    from x2l_cluster.cli import show_service
    from x2l_cluster.client import X2L

    with X2L(url) as x2l:
        show_service.job(x2l.cancel(job), as_json=as_json)


@jobs.command()
def retry(job: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """Queue a failed or cancelled job again."""
    from x2l_cluster.cli import show_service
    from x2l_cluster.client import X2L

    with X2L(url) as x2l:
        show_service.job(x2l.retry(job), as_json=as_json)
