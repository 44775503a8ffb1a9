"""``x2l export`` and ``x2l import``: an index as one file, to be kept or taken elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from x2l_cluster.cli import opened, progress, show
from x2l_cluster.cli.options import AsJson, FineStore, ModelName, Store, VideoId
from x2l_cluster.cli.text import plain, size
from x2l_cluster.types import LOCAL_TENANT

Archive = Annotated[Path, typer.Argument(metavar="FILE", help="The exported index.")]


def export(
    video: VideoId,
    file: Archive,
    store: Store = None,
    fine_store: FineStore = None,
    as_json: AsJson = False,
) -> None:
    """Write the index of a video into one file: its record, its blocks, their checksums. The original is not in it."""
    with opened.stores(store, fine_store) as stores, progress.steps(show.err, video) as report:
        from x2l_cluster.engine.transfer import export_index

        done = export_index(stores, stores.state.manifest(LOCAL_TENANT, video), file, told=report)
    if as_json:
        show.emit({"video": video, "file": str(file), "size_bytes": done.size_bytes, "coarse_chunks": done.coarse})
        return
    show.line(f"{video} in {plain(str(file))}, {size(done.size_bytes)}")
    if done.coarse:
        show.line(f"fine detail of {done.coarse} of {len(done.manifest.chunks)} chunks was not there", style="yellow")


def import_(
    file: Archive,
    video: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="An id of your choice; by default the one it had.")
    ] = None,
    model: ModelName = None,
    store: Store = None,
    fine_store: FineStore = None,
    as_json: AsJson = False,
) -> None:
    """Take an exported index in. All of it is checked first, against the model too; what is here is no new work."""
    with opened.engine(model, store, fine_store) as engine, progress.steps(show.err, file.name) as report:
        from x2l_cluster.engine.transfer import import_index

        done = import_index(engine.stores, engine.lm, file, tenant=LOCAL_TENANT, video=video, told=report)
    facts = show.facts(done.manifest) | {"new": done.new}
    show.indexed_facts(facts, as_json=as_json)
