"""Making again what a video has lost, and saying what it has let go of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from x2l_cluster.errors import ModelMismatch, SourceMissing, X2LError
from x2l_cluster.metrics import REPAIRS
from x2l_cluster.models.base import ModelSpec
from x2l_cluster.types import Kind, Manifest, SourceRef


def let_go(manifest: Manifest) -> str | None:
    """What a question should be told of fine detail that its video was indexed with and does not have any more."""
    lacking = sum(Kind.L not in row.blocks for row in manifest.chunks)
    if not lacking:
        return None
    of_what = "this video" if lacking == len(manifest.chunks) else f"{lacking} of {len(manifest.chunks)} chunks"
    return f"fine detail of {of_what} is not kept any more; `x2l refresh` makes it again"


def check_model(manifest: Manifest, spec: ModelSpec) -> None:
    """Raises ModelMismatch unless this model made the index."""
    if (manifest.recipe.family, manifest.recipe.weights) != (spec.family, spec.weights):
        raise ModelMismatch(
            f"video {manifest.video} was indexed by a {manifest.recipe.family} model with weights "
            f"{manifest.recipe.weights}, this one has {spec.weights}; ask with that model or index the "
            "video with this one"
        )


def source_of(manifest: Manifest) -> SourceRef:
    """Raises SourceMissing when none was kept."""
    if manifest.source is None:
        raise SourceMissing(f"the source of video {manifest.video} was not kept; index it again from its file")
    return manifest.source


@contextmanager
def counted_repair() -> Iterator[None]:
    try:
        yield
    except X2LError as error:
        REPAIRS.labels(error.code).inc()
        raise
    REPAIRS.labels("done").inc()
