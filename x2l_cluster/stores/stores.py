"""Where things are kept: one URL for everything, with fine blocks, state or originals elsewhere if wanted."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from x2l_cluster.errors import InvalidInput, ManifestConflict, ManifestCorrupt, StoreUnavailable, UnknownVideo
from x2l_cluster.kv.open import bare, open_kv
from x2l_cluster.kv.store import KVStore
from x2l_cluster.state.base import StateStore, VideoRecord
from x2l_cluster.state.open import open_state
from x2l_cluster.stores.upkeep import decay, orphans_of
from x2l_cluster.types import IndexStatus, Kind, Manifest, check_name
from x2l_cluster.video import FsspecSourceStore, SourceStore

_ATTEMPTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """Blocks, state and sources. Closes what it opened."""

    kv: KVStore
    state: StateStore
    sources: SourceStore
    opened: ExitStack

    @classmethod
    def open(cls, url: str, *, fine: str | None = None, state: str | None = None, sources: str | None = None) -> Stores:
        """``disk:PATH`` (all that is needed, and restart-proof), ``memory:``, or tiers that end in one of these:
        ``tiers:host:/dev/shm/x2l|unix:///run/valkey.sock|disk:PATH``.

        Args:
            fine: a KV URL for fine blocks instead.
            state: a state URL (``redis://…``, ``unix:///…``) for manifests and jobs instead, for several machines.
            sources: a folder or an fsspec URL (``s3://…``) for kept originals instead.

        What :func:`open_kv` wraps around a place (``faulty:…@disk:PATH``) is for blocks only.

        Raises InvalidInput and StoreUnavailable.
        """
        place, _, path = bare(url).partition(":")
        with ExitStack() as stack:
            if place == "memory":
                root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="x2l-")))
            elif place == "disk" and path:
                root = Path(path).expanduser()
            else:
                raise InvalidInput(f"a store is disk:PATH or memory:, or tiers that end in one of these; got {url!r}")
            kv = stack.enter_context(open_kv(f"{Kind.L}={fine};{url}" if fine else url))
            manifests = stack.enter_context(open_state(state or url))
            originals = FsspecSourceStore(sources or root / "sources")
            return cls(kv=kv, state=manifests, sources=originals, opened=stack.pop_all())

    def manifest(self, tenant: str, video: str, weights: str | None = None) -> Manifest:
        """The newest index of a video; of the model with these weights if there is one. Raises UnknownVideo."""
        newest = self.state.manifest(tenant, video)
        if weights is None or newest.recipe.weights == weights:
            return newest
        own = [r for r in self.state.videos(tenant) if r.video == video and r.recipe.weights == weights]
        if not own:
            return newest
        best = max(own, key=lambda record: (record.status.was_ready, record.epoch))
        return self.state.manifest(tenant, video, best.recipe.digest)

    def video_id(self, tenant: str, content: str, wished: str | None = None) -> str:
        """The id an index of that content has or will have; what a recording has grown from is that recording.

        Raises InvalidInput when the wished one is taken.
        """
        bound = self.state.find(tenant, content)
        video = wished or bound or f"v-{content[:16]}"
        try:
            source = self.state.manifest(tenant, video).source
        except UnknownVideo:
            return video
        if source is not None and source.id != content and bound != video:
            raise InvalidInput(f"video id {video} is taken by another file; choose another id or delete that video")
        return video

    def delete_video(self, tenant: str, video: str) -> int:
        """Deletes a video from every store and returns the bytes of KV freed.

        The manifest goes first, so that no one sees half a video. If a store does not answer, the others are cleared
        all the same, and the call can be made again. An index that somebody has begun while its blobs were being
        cleared away goes too. Raises UnknownVideo and StoreUnavailable.
        """
        check_name("video id", video)
        freed = latest = 0
        for attempt in range(_ATTEMPTS):
            records = self._records(tenant, video)
            if attempt and not any(record.epoch <= latest for record in records):
                return freed
            known = self.state.delete(tenant, video)
            for source in {r.source.id: r.source for r in records if r.source}.values():
                if not self.source_in_use(tenant, source.id):
                    self.sources.delete(tenant, source)
            cleared = self.kv.delete_video(tenant, video)
            latest = self.state.epoch(tenant)  # who began later has lost nothing
            if not attempt and not known and not cleared:
                raise UnknownVideo(f"no video {video} is here; `x2l videos` lists them")
            freed += cleared
        raise StoreUnavailable(f"video {video} is indexed again and again while it is deleted: stop its jobs first")

    def _records(self, tenant: str, video: str) -> list[VideoRecord]:
        """Of a video. A damaged manifest must not keep its video from being deleted; its source stays then."""
        try:
            return [record for record in self.state.videos(tenant) if record.video == video]
        except ManifestCorrupt:
            return []

    def supersede(self, manifest: Manifest) -> int:
        """Forgets every other index of a video for good, now that this one serves; returns how many there were.

        Their blobs stay for :meth:`sweep`: a question that began before may still read them. Raises UnknownVideo, and
        ManifestConflict while this one is not ready.
        """
        tenant, video, recipe = manifest.tenant, manifest.video, manifest.recipe.digest
        if self.state.manifest(tenant, video, recipe).status is not IndexStatus.READY:
            raise ManifestConflict(f"the new index of video {video} is not ready: the old one goes on serving")
        others = [r for r in self.state.videos(tenant) if r.video == video and r.recipe.digest != recipe]
        return sum(self.state.delete(tenant, video, other.recipe.digest) for other in others)

    def sweep(self, tenant: str, video: str) -> int:
        """Deletes the blobs of a video that nothing names any more; returns the bytes freed."""
        return self.kv.delete(orphans_of(tenant, video, kv=self.kv, state=self.state).keys)

    def decay(self, manifest: Manifest) -> Manifest:
        """Lets go of the fine detail of an index; see :func:`~x2l_cluster.stores.upkeep.decay`."""
        return decay(manifest, kv=self.kv, state=self.state)

    def source_in_use(self, tenant: str, content: str) -> bool:
        """Whether any index of the tenant was made from this content."""
        return any(m.source is not None and m.source.id == content for m in self.state.videos(tenant))

    def close(self) -> None:
        self.opened.close()
