"""The seam to the state: which videos exist, for whom, and which of their chunks are sealed.

An indexing run goes ``begin → seal, seal, … → finish``, and that of a video there is more of by now ``grow → seal, …``.
Each run has an **epoch**, taken from a counter that only ever
grows; whoever begins later has the higher one, and from then on every step under a lower one is refused. So a worker
that was thought dead and comes back publishes nothing.

Implementations: :mod:`~x2l_cluster.state.memory`, :mod:`~x2l_cluster.state.disk`, :mod:`~x2l_cluster.state.remote`. All
pass one contract suite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from x2l_cluster.types import ChunkRow, IndexStatus, Manifest, Recipe, SourceRef, Span, VideoInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRecord:
    """A line in a list of videos: a manifest without its rows."""

    tenant: str
    video: str
    recipe: Recipe
    epoch: int
    revision: int
    status: IndexStatus
    info: VideoInfo
    source: SourceRef | None
    made_s: float
    """As of a manifest."""
    chunks: int
    covered: Span
    stored_bytes: int
    """Of all blobs its rows name."""
    fine_bytes: int
    """Of the fine ones among them."""


class StateStore(Protocol):
    """Keeps manifests. Every step is atomic: it is visible whole, to everyone at once, or not at all.

    The tenant comes first everywhere and is part of every key: another tenant's video is unknown, not forbidden. Safe
    to use from several threads, and by several processes where the place is shared. Any method may raise
    StoreUnavailable, StoreFull, or ManifestCorrupt.
    """

    @property
    def durable(self) -> bool:
        """Whether a step that returned outlives a restart of the machine."""
        ...

    def begin(
        self, tenant: str, video: str, recipe: Recipe, info: VideoInfo, source: SourceRef | None = None
    ) -> Manifest:
        """Takes the work over under a new epoch, which is the returned manifest's.

        What is sealed under this recipe stays: work goes on behind ``manifest.settled``. A finished index stays
        READY (its blocks may be updated, no chunk added).

        Raises:
            ManifestConflict: the video has sealed chunks of another source.
        """
        ...

    def grow(
        self,
        tenant: str,
        video: str,
        recipe_digest: str,
        *,
        revision: int,
        kept: int,
        info: VideoInfo,
        source: SourceRef,
    ) -> Manifest:
        """There is more of the video: ``source`` goes on where the one before ended. A READY index is GROWING from now
        on, under a new epoch.

        All rows stay visible, but only the first ``kept`` are settled; those behind them, the tail, are replaced as
        they are sealed again.

        Args:
            revision: of the manifest that ``source`` was compared with.

        Raises:
            StaleEpoch: the manifest has changed since.
            UnknownVideo: as :meth:`seal`.
            ManifestConflict: not so many chunks are settled.
        """
        ...

    def seal(self, tenant: str, video: str, recipe_digest: str, epoch: int, row: ChunkRow) -> Manifest:
        """Publishes the next chunk, in the place of the one that is there if that is of the tail. Its blocks must be
        stored by then.

        Sealing an equal row again changes nothing.

        Raises:
            StaleEpoch: somebody began after ``epoch``.
            UnknownVideo: the video was deleted, or never begun; it is not brought back.
            ManifestConflict: the row is not the next one, or differs from the sealed one, or the index is finished.
        """
        ...

    def revise(self, tenant: str, video: str, recipe_digest: str, epoch: int, rows: Sequence[ChunkRow]) -> Manifest:
        """Replaces the blocks of sealed chunks, of all of ``rows`` at once. The rest of a row must agree.

        So a repair publishes what it made again, a new calibration its score index, and packing where blobs lie now.

        Raises: as :meth:`seal`; nothing has changed then.
        """
        ...

    def decay(self, tenant: str, video: str, recipe_digest: str) -> Manifest:
        """Takes the fine block out of every row of a READY index, at once, so that no plan promises what then goes.

        Under a new epoch: whoever works on the index just now is overtaken. A repair puts fine blocks back. Decaying
        again changes nothing.

        Raises:
            UnknownVideo: as :meth:`seal`.
            ManifestConflict: the index is not READY.
        """
        ...

    def finish(
        self, tenant: str, video: str, recipe_digest: str, epoch: int, info: VideoInfo | None = None
    ) -> Manifest:
        """Declares the index READY, with ``info`` as it turned out to be; what is left of a tail stays. Finishing again
        changes nothing.

        Raises:
            StaleEpoch, UnknownVideo: as :meth:`seal`.
            ManifestConflict: nothing is sealed.
        """
        ...

    def manifest(self, tenant: str, video: str, recipe_digest: str | None = None) -> Manifest:
        """The manifest of that recipe; without one, the newest that is or was READY, else the newest.

        Raises UnknownVideo.
        """
        ...

    def tenants(self) -> list[str]:
        """Who has a manifest or had one; sorted. Walks all of the state: for sweeps, never on the way of a request."""
        ...

    def epoch(self, tenant: str) -> int:
        """The highest that was given out; 0 when none was. Blobs of a later one tell that this state is too old."""
        ...

    def videos(self, tenant: str) -> list[VideoRecord]:
        """One record a video and recipe, sorted by video, newest last."""
        ...

    def bind(self, tenant: str, content: str, video: str) -> str:
        """Notes that content with this digest is that video, unless another is noted already; returns what is noted."""
        ...

    def find(self, tenant: str, content: str) -> str | None:
        """The video with that content."""
        ...

    def delete(self, tenant: str, video: str, recipe_digest: str | None = None) -> bool:
        """Forgets the video, all its recipes and bindings at once; or only one recipe, and with the last one all.

        Tells whether there was anything.

        Comes before the deletion of blobs, so that no manifest names what is gone. The epoch counter stays.
        """
        ...

    def close(self) -> None:
        """Lets go of connections and files; what is durable stays. May be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...
