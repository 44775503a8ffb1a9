"""Letting go of what a video can be answered without, and making it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from x2l_cluster.errors import ModelMismatch, SourceMissing, UnknownVideo, X2LError
from x2l_cluster.kv.store import KVStore
from x2l_cluster.metrics import KV_EVICTIONS, REPAIRS, kind_of
from x2l_cluster.models import VideoLM
from x2l_cluster.state.base import StateStore
from x2l_cluster.types import Kind, Manifest, SourceRef


def decay(manifest: Manifest, *, kv: KVStore, state: StateStore) -> Manifest:
    """Lets go of the fine blocks of an index: first no row names them any more, then they go.

    Raises UnknownVideo, ManifestConflict while it is being indexed, StoreUnavailable (it can be called again then).
    """
    tenant, video, recipe = manifest.tenant, manifest.video, manifest.recipe.digest
    left = state.decay(tenant, video, recipe)
    gone = [
        key
        for key in kv.keys(tenant, video)
        if key.recipe == recipe and kind_of(key.kind) == Kind.L and key.epoch <= left.epoch  # later: of a repair
    ]
    kv.delete(gone)
    KV_EVICTIONS.labels(kv.route(Kind.L).tier.value, str(Kind.L), "decay").inc(len(gone))
    return left


def let_go(manifest: Manifest) -> str | None:
    """What a question should be told of fine detail that its video was indexed with and does not have any more."""
    lacking = sum(Kind.L not in row.blocks for row in manifest.chunks)
    if not lacking:
        return None
    of_what = "this video" if lacking == len(manifest.chunks) else f"{lacking} of {len(manifest.chunks)} chunks"
    return f"fine detail of {of_what} is not kept any more; `x2l refresh` makes it again"


def orphaned(state: StateStore) -> Callable[[str, str], bool]:
    """Whether a tenant's video has no manifest, for an evictor: its blobs are what a deletion did not reach."""

    def without_manifest(tenant: str, video: str) -> bool:
        try:
            state.manifest(tenant, video)
        except UnknownVideo:
            return True
        return False

    return without_manifest


def check_model(manifest: Manifest, lm: VideoLM) -> None:
    """Raises ModelMismatch unless this model made the index."""
    if (manifest.recipe.family, manifest.recipe.weights) != (lm.spec.family, lm.spec.weights):
        raise ModelMismatch(
            f"video {manifest.video} was indexed by a {manifest.recipe.family} model with weights "
            f"{manifest.recipe.weights}, this one has {lm.spec.weights}; ask with that model or index the "
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
