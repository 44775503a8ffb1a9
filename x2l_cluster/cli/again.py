"""``x2l reindex``: indexes made anew by another recipe, model or layout, while the old ones serve."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from x2l_cluster.cli import opened, progress, show
from x2l_cluster.cli.options import AsJson, FineStore, ModelName, Store, Url
from x2l_cluster.cli.text import plain
from x2l_cluster.errors import Cancelled, X2LError
from x2l_cluster.types import recipe_fields


def _recipe(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"--recipe is a JSON object ({error})") from None
    if not isinstance(value, dict):
        raise typer.BadParameter("--recipe is a JSON object, as --recipe '{\"chunk_frames\": 8}'")
    return value


def reindex(
    video: Annotated[
        str | None, typer.Argument(metavar="[VIDEO]", help="Id of an indexed video.", show_default=False)
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every video, one after the other.")] = False,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="Fields of the recipe to change; but for the sampling the model chooses."),
    ] = None,
    model: ModelName = None,
    store: Store = None,
    fine_store: FineStore = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Index a video anew from its kept file, since the model, its recipe or the layout has changed. The old index
    answers until the new one is ready, then it goes. Interrupted, the next run goes on."""
    if (video is None) != all_:
        raise typer.BadParameter("give the id of a video, or --all")
    changes = _recipe(recipe)
    if url is not None:
        from x2l_cluster.cli import remote

        remote.alone(url, model=model, store=store, fine_store=fine_store)
        names = [known.id for known in remote.videos(url)] if video is None else [video]
        there = functools.partial(_there, url, changes)
        _each(names, there, whole=all_, as_json=as_json)
        return
    fields = recipe_fields(changes)
    with opened.engine(model, store, fine_store, video=video) as engine, opened.interruptible() as cancel:
        names = sorted({record.video for record in engine.videos()}) if video is None else [video]

        def here(name: str) -> dict[str, Any]:
            with progress.chunks(show.err, name) as report:
                return show.facts(engine.reindex(name, progress=report, cancel=cancel, **fields))

        _each(names, here, whole=all_, as_json=as_json)


def _there(url: str, recipe: dict[str, Any], video: str) -> dict[str, Any]:
    from x2l_cluster.cli import remote

    return show.facts_there(*remote.reindex(url, video, recipe))


def _each(names: Sequence[str], one: Callable[[str], dict[str, Any]], *, whole: bool, as_json: bool) -> None:
    """Does one after the other. Of several, one that fails is told of and does not keep the others from being done."""
    told: list[dict[str, Any]] = []
    failed: list[X2LError] = []
    for name in names:
        try:
            told.append(one(name))
        except X2LError as error:
            if not whole or isinstance(error, Cancelled):
                raise
            failed.append(error)
            told.append({"video": name, "error": {"code": error.code, "message": str(error)}})
            show.err.print(f"{name}: {plain(str(error))}", style="red", soft_wrap=True)
            continue
        if not as_json:
            show.indexed_facts(told[-1], as_json=False)
    if as_json:
        show.emit(told if whole else told[0])
    if failed:
        raise typer.Exit(5 if all(error.retryable for error in failed) else 3)
