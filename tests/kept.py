"""Indexes without a model: manifests whose rows name blobs that are really there, and the stores that keep them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from x2l_cluster.state.ledger import Ledger
from x2l_cluster.state.open import State, open_ledger
from x2l_cluster.stores import Stores
from x2l_cluster.stores.janitor import Janitor, Rules
from x2l_cluster.types import BlockKey, BlockRef, ChunkRow, Kind, Manifest, Recipe, Span, VideoInfo

RECIPE = Recipe(family="tiny", weights="w1")
OTHER = Recipe(family="tiny", weights="w1", chunk_frames=8)
INFO = VideoInfo(duration_s=60.0, width=64, height=48, fps=25.0)
BLOB = bytes(1000)
KINDS = (Kind.L, Kind.H, "x-1f")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """All stores of a service."""

    stores: Stores
    state: State
    ledger: Ledger
    opened: ExitStack = field(repr=False)

    def janitor(self, later_s: float = 0.0, **rules: Any) -> Janitor:
        """One whose clock is that much ahead, and who looks for orphans at every pass."""
        import time

        made = Rules(**{"sweep_every_s": 0.0} | rules)
        return Janitor(self.stores, self.state, self.ledger, rules=made, clock=lambda: time.time() + later_s)

    def begin(self, video: str, tenant: str = "ada", recipe: Recipe = RECIPE) -> Manifest:
        source = self.stores.sources.put(tenant, BytesIO(video.encode()), name=f"{video}.mp4")
        return self.stores.state.begin(tenant, video, recipe, INFO, source)

    def put(self, manifest: Manifest, chunk: int, kinds: tuple[str, ...] = KINDS) -> list[BlockKey]:
        """Stores blobs of a chunk under the run's epoch; nothing names them yet."""
        keys = [
            BlockKey(
                tenant=manifest.tenant,
                video=manifest.video,
                recipe=manifest.recipe.digest,
                epoch=manifest.epoch,
                kind=kind,
                chunk=chunk,
            )
            for kind in kinds
        ]
        for key in keys:
            self.stores.kv.put(key, BLOB)
        return keys

    def seal(self, manifest: Manifest, chunk: int) -> Manifest:
        """Stores a chunk and publishes it."""
        blocks = {
            key.kind: BlockRef(
                kind=key.kind, epoch=key.epoch, size_bytes=len(BLOB), checksum=f"{chunk:016x}", entries=5
            )
            for key in self.put(manifest, chunk)
        }
        row = ChunkRow(
            index=chunk,
            span=Span(start_s=chunk * 8.0, end_s=chunk * 8.0 + 8),
            frames=16,
            position_start=chunk * 40.0,
            position_end=chunk * 40.0 + 40,
            raw_entries=200,
            blocks=blocks,
        )
        place = (manifest.tenant, manifest.video, manifest.recipe.digest, manifest.epoch)
        return self.stores.state.seal(*place, row)

    def index(self, video: str, tenant: str = "ada", recipe: Recipe = RECIPE, chunks: int = 3) -> Manifest:
        manifest = self.begin(video, tenant, recipe)
        for chunk in range(chunks):
            self.seal(manifest, chunk)
        return self.stores.state.finish(tenant, video, recipe.digest, manifest.epoch)

    def held(self, video: str, tenant: str = "ada") -> set[BlockKey]:
        return set(self.stores.kv.keys(tenant, video))

    def named(self, video: str, tenant: str = "ada") -> frozenset[BlockKey]:
        return self.stores.state.manifest(tenant, video).named


@contextmanager
def kept(place: str, tmp_path: Path, server: str | None = None) -> Iterator[Kept]:
    """``memory``; ``disk``; ``server``: state and fine blocks in a server, the rest on the disk."""
    store = {
        "memory": "memory:",
        "disk": f"disk:{tmp_path / 'store'}",
        "server": f"tiers:memory:|{server}|disk:{tmp_path / 'store'}",
    }[place]
    where = f"{server}&durable=true" if place == "server" else store
    with ExitStack() as opened:
        stores = Stores.open(store, state=where)
        opened.callback(stores.close)
        state = opened.enter_context(State.open(where, manifests=stores.state))
        ledger = open_ledger(where, "janitor")
        opened.callback(ledger.close)
        yield Kept(stores=stores, state=state, ledger=ledger, opened=opened)
