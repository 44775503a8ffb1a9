"""What changes an index: making, growing, repairing and letting go of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from x2l_cluster.engine.grow import check_can_grow
from x2l_cluster.engine.index import Indexer, Progress
from x2l_cluster.engine.prefill import Prefilled
from x2l_cluster.engine.turns import Turns
from x2l_cluster.engine.upkeep import check_model, counted_repair, source_of
from x2l_cluster.errors import InvalidInput, UnknownVideo
from x2l_cluster.models import VideoLM
from x2l_cluster.select import Calibration, get_scorer
from x2l_cluster.stores import Stores
from x2l_cluster.types import LOCAL_TENANT, IndexStatus, Manifest, Recipe, SourceRef, check_name


class IndexingEngine:
    """The indexing half of :class:`~x2l_cluster.engine.engine.VideoEngine`. Safe for several threads.

    Args:
        lm: the model.
        stores: blocks, state and sources; the engine closes them.
        calibration: which heads the stored score indexes are of.
        decode_deadline_s: a video decoder without progress for so long is killed.
        stripe_bytes: what a stored blob takes at most.
        turns: shared with whoever else uses the device.
    """

    def __init__(
        self,
        lm: VideoLM,
        stores: Stores,
        *,
        calibration: Calibration | None,
        decode_deadline_s: float,
        stripe_bytes: int,
        turns: Turns,
    ) -> None:
        self.lm = lm
        self.stores = stores
        stored = ["embedding", *(["calibrated"] if calibration else [])]
        self._indexing = threading.Lock()
        self._indexer = Indexer(
            lm=lm,
            kv=stores.kv,
            state=stores.state,
            scorers=[get_scorer(name, lm.spec, calibration) for name in stored],
            deadline_s=decode_deadline_s,
            stripe_bytes=stripe_bytes,
            turns=turns,
        )

    def changed(self, tenant: str, video: str) -> None:
        """Called whenever an index is another than before: what is kept hot of it must go. Nothing is kept here."""

    def manifest(self, video: str, *, tenant: str = LOCAL_TENANT) -> Manifest:
        """The newest index of a video, of this model if there is one. Raises UnknownVideo."""
        return self.stores.manifest(tenant, video, self.lm.spec.weights)

    def index(
        self,
        path: str | Path,
        *,
        video: str | None = None,
        tenant: str = LOCAL_TENANT,
        repair: bool = False,
        progress: Callable[[Progress], None] = lambda _: None,
        cancel: threading.Event | None = None,
        watch: Callable[[Prefilled], None] = lambda _: None,
        **recipe: Any,
    ) -> Manifest:
        """Indexes a video file. The same content under the same recipe is no new work; half-done work is gone on with.

        Args:
            video: an id of your choice; by default it comes from the content.
            repair: make again what is gone or damaged of an index that is there, score indexes included.
            watch: sees every chunk as it is prefilled, raw KVs included.
            recipe: fields of :class:`~x2l_cluster.types.Recipe` to change.

        Raises VideoError when the file is at fault, KVError when a store is, Cancelled after ``cancel`` was set.
        """
        made = self.lm.recipe(**recipe)
        if video is not None:
            check_name("video id", video)
        with self._indexing:  # one device prefills one video at a time; the next caller finds the work done
            source = self.stores.sources.put(tenant, path)
            try:
                return self._index(
                    source,
                    made,
                    tenant=tenant,
                    video=video,
                    repair=repair,
                    progress=progress,
                    cancel=cancel,
                    watch=watch,
                )
            finally:
                self._let_go(tenant, source)

    def index_source(
        self,
        source: SourceRef,
        *,
        video: str | None = None,
        tenant: str = LOCAL_TENANT,
        repair: bool = False,
        progress: Callable[[Progress], None] = lambda _: None,
        cancel: threading.Event | None = None,
        **recipe: Any,
    ) -> Manifest:
        """As :meth:`index`, of a source that is kept already and stays kept. Raises SourceMissing too."""
        made = self.lm.recipe(**recipe)
        with self._indexing, counted_repair() if repair else nullcontext():
            return self._index(
                source, made, tenant=tenant, video=video, repair=repair, progress=progress, cancel=cancel
            )

    def append(
        self,
        video: str,
        path: str | Path,
        *,
        tenant: str = LOCAL_TENANT,
        progress: Callable[[Progress], None] = lambda _: None,
        cancel: threading.Event | None = None,
    ) -> Manifest:
        """Goes on with a video whose recording has grown: ``path`` begins with all that was indexed, and has more.

        What was indexed stays and can be asked about meanwhile; the video keeps its id, and the longer file becomes its
        source. The outcome is that of indexing the longer file at once. A file with nothing new changes nothing;
        half-done work is gone on with. Of several recipes, that of the newest index is meant.

        Raises UnknownVideo, ModelMismatch (another model indexed it), NotAContinuation when the file begins with
        anything else, InvalidInput when its recipe cannot grow, and as :meth:`index`.
        """
        self._growing(video, tenant)
        source = self.stores.sources.put(tenant, path)
        try:
            return self.append_source(video, source, tenant=tenant, progress=progress, cancel=cancel)
        finally:
            self._let_go(tenant, source)

    def append_source(
        self,
        video: str,
        source: SourceRef,
        *,
        tenant: str = LOCAL_TENANT,
        progress: Callable[[Progress], None] = lambda _: None,
        cancel: threading.Event | None = None,
    ) -> Manifest:
        """As :meth:`append`, of a source that is kept already and stays kept. Raises SourceMissing too."""
        with self._indexing:
            known = self._growing(video, tenant)
            if known.source is None or known.source.id == source.id:  # begun before, or nothing new
                return self._index(
                    source,
                    known.recipe,
                    tenant=tenant,
                    video=video,
                    repair=False,
                    progress=progress,
                    cancel=cancel,
                )
            shorter = known.source
            with self.stores.sources.open_local(tenant, source) as local:
                grown = self._indexer.grow(
                    local,
                    known=known,
                    source=source,
                    begun=lambda _: self._let_go(tenant, shorter),
                    progress=progress,
                    cancel=cancel,
                )
            self.changed(tenant, video)
            if grown.source is not None and grown.source.id == source.id:
                self.stores.state.bind(tenant, source.id, video)
            return grown

    def _growing(self, video: str, tenant: str) -> Manifest:
        known = self.manifest(video, tenant=tenant)
        check_model(known, self.lm.spec)
        check_can_grow(known)
        return known

    def _let_go(self, tenant: str, source: SourceRef) -> None:
        """Deletes a kept source that no index names."""
        if not self.stores.source_in_use(tenant, source.id):
            self.stores.sources.delete(tenant, source)

    def refresh(
        self,
        video: str | Manifest,
        *,
        tenant: str = LOCAL_TENANT,
        progress: Callable[[Progress], None] = lambda _: None,
        cancel: threading.Event | None = None,
    ) -> Manifest:
        """Makes again, from the kept source, what the stores have lost of a video, and fine detail it decayed from.

        Raises UnknownVideo, ModelMismatch (another model indexed it), SourceMissing, and as :meth:`index`.
        """
        known = self.manifest(video, tenant=tenant) if isinstance(video, str) else video
        check_model(known, self.lm.spec)
        with self._indexing, counted_repair():
            return self._index(
                source_of(known),
                known.recipe,
                tenant=known.tenant,
                video=known.video,
                repair=True,
                progress=progress,
                cancel=cancel,
            )

    def reindex(
        self,
        video: str,
        *,
        tenant: str = LOCAL_TENANT,
        progress: Callable[[Progress], None] = lambda _: None,
        cancel: threading.Event | None = None,
        **recipe: Any,
    ) -> Manifest:
        """Indexes a video again, from its kept source, as this model does it now. The old index serves until the new
        one is ready; then it goes.

        Args:
            recipe: fields to change. Which frames are looked at stays as it was; all else is the model's choice.

        Raises UnknownVideo, SourceMissing, and as :meth:`index`; the old index is left as it was.
        """
        old = self.stores.state.manifest(tenant, video)
        made = self.index_source(
            source_of(old),
            video=video,
            tenant=tenant,
            progress=progress,
            cancel=cancel,
            **{"sampling": old.recipe.sampling} | recipe,
        )
        self.replaced(made)
        self.stores.sweep(tenant, video)
        return made

    def replaced(self, by: Manifest) -> None:
        """Lets go of all other indexes of a video; their blobs are left to :meth:`Stores.sweep`."""
        try:
            self.stores.supersede(by)
        finally:
            self.changed(by.tenant, by.video)

    def decay(self, video: str, *, tenant: str = LOCAL_TENANT) -> Manifest:
        """Lets go of the fine detail of a video: it is answered from its coarse gist until it is refreshed.

        Raises UnknownVideo, ManifestConflict while it is being indexed, StoreUnavailable (then call it again).
        """
        try:
            return self.stores.decay(self.manifest(video, tenant=tenant))
        finally:
            self.changed(tenant, video)

    def _index(
        self,
        source: SourceRef,
        recipe: Recipe,
        *,
        tenant: str,
        video: str | None,
        repair: bool,
        progress: Callable[[Progress], None],
        cancel: threading.Event | None,
        watch: Callable[[Prefilled], None] = lambda _: None,
    ) -> Manifest:
        name = self.video_id(tenant, source.id, video)
        known = self._find(tenant, name, recipe.digest)
        source = _longest(source, known)
        if known is None or known.status is not IndexStatus.READY or repair:
            with self.stores.sources.open_local(tenant, source) as local:
                known = self._indexer.run(
                    local,
                    tenant=tenant,
                    video=name,
                    recipe=recipe,
                    source=source,
                    repair=repair,
                    progress=progress,
                    cancel=cancel,
                    watch=watch,
                )
                self.changed(tenant, name)
        self.stores.state.bind(tenant, source.id, name)
        return known

    def stored_bytes(self, done: Prefilled, recipe: Recipe) -> dict[str, int]:
        """What would be stored of a prefilled chunk, by kind."""
        return self._indexer.stored_bytes(done, recipe)

    def video_id(self, tenant: str, content: str, wished: str | None = None) -> str:
        """The id an index of that content has or will have; what a recording has grown from is that recording.

        Raises InvalidInput when the wished one is taken.
        """
        return self.stores.video_id(tenant, content, wished)

    def _find(self, tenant: str, video: str, recipe: str | None = None) -> Manifest | None:
        try:
            return self.stores.state.manifest(tenant, video, recipe)
        except UnknownVideo:
            return None

    def close(self) -> None:
        self.stores.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _longest(source: SourceRef, known: Manifest | None) -> SourceRef:
    """What an index of a source is made from: if its recording has grown since, that is the longer one.

    Raises InvalidInput when the index is of less than this source.
    """
    if known is None or known.source is None or known.source.id == source.id:
        return source
    if known.source.size_bytes < source.size_bytes:
        raise InvalidInput(
            f"under this recipe, video {known.video} was indexed from {known.source.size_bytes} bytes, before it grew; "
            f"go on with it: `x2l append {known.video} FILE`"
        )
    return known.source
