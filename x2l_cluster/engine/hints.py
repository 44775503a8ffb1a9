"""Hints to the tiers: what questions are likely to need next."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from itertools import islice
from threading import Lock
from time import monotonic
from typing import Final

from cachetools import TTLCache

from x2l_cluster.kv.store import KVStore
from x2l_cluster.metrics import kind_of
from x2l_cluster.types import BlockKey, Kind, Level, Manifest, ReloadPlan

AGAIN_S: Final = 60.0
"""A video is not opened again so soon: what was brought near for it is still there."""
RUNNERS_UP: Final = 2
MOST: Final = 4
"""Chunks hinted at for one question, runners-up and neighbours together."""


class Hints:
    """Tells a store what may be asked for soon; what it makes of that is its business. Safe for several threads.

    Args:
        clock: seconds that only run forward.
    """

    def __init__(self, kv: KVStore, *, clock: Callable[[], float] = monotonic) -> None:
        self._kv = kv
        self._opened: TTLCache[tuple[str, str, str, int, int], bool] = TTLCache(1024, AGAIN_S, clock)
        self._lock = Lock()

    def opened(self, manifest: Manifest) -> None:
        """A question about this video is on its way: all that is coarse of it will be read, then its score index."""
        name = (manifest.tenant, manifest.video, manifest.recipe.digest, manifest.epoch, manifest.revision)
        with self._lock:
            if name in self._opened:
                return
            self._opened[name] = True
        for kind in (Kind.H, Kind.INDEX):
            self._kv.prefetch(_keys(manifest, kind))

    def planned(self, manifest: Manifest, plan: ReloadPlan) -> None:
        """A question got what it needed; the next one may want what scored next best, or what lies beside it."""
        places = {chunk.chunk for chunk in plan.chunks if chunk.level is Level.L}
        others = sorted((c for c in plan.chunks if c.level is Level.H), key=lambda c: -c.score)
        beside = [c.chunk for c in others if {c.chunk - 1, c.chunk + 1} & places]
        wanted = dict.fromkeys([*(c.chunk for c in others[:RUNNERS_UP]), *beside])
        if places and wanted:
            self._kv.prefetch(_keys(manifest, Kind.L, set(islice(wanted, MOST))))

    def forget(self, tenant: str, video: str) -> None:
        """The video is not what it was."""
        with self._lock:
            for name in [name for name in self._opened if name[:2] == (tenant, video)]:
                del self._opened[name]


def _keys(manifest: Manifest, kind: str, chunks: Container[int] | None = None) -> Iterable[BlockKey]:
    """Each blob once; a segment holds blocks of many chunks."""
    return dict.fromkeys(
        key
        for row in manifest.chunks
        for ref in row.blocks.values()
        if kind_of(ref.kind) == kind and (chunks is None or row.index in chunks)
        for key in manifest.keys(ref, row.index)
    )
