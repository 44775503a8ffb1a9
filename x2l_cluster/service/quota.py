"""How much a tenant holds, and whether it may hold more: asked at the door, and of every chunk that is indexed.

What is held is what manifests name, fine detail that a store has evicted included: it comes back by a repair, and whose
blocks were evicted for others' sake should not be able to index twice as much.
"""

from __future__ import annotations

from dataclasses import dataclass

from x2l_cluster.errors import QuotaExceeded, UnknownTenant
from x2l_cluster.state.base import StateStore, VideoRecord
from x2l_cluster.state.tenants import TenantStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a tenant has now; fields as those of :class:`~x2l_cluster.state.tenants.Quotas`."""

    videos: int
    source_bytes: int
    kv_bytes: int


def held_by(records: list[VideoRecord]) -> Held:
    """Of all indexes of a tenant; a video that is indexed twice, or a file that two are made of, is one."""
    sources = {record.source.id: record.source.size_bytes for record in records if record.source}
    return Held(
        videos=len({record.video for record in records}),
        source_bytes=sum(sources.values()),
        kv_bytes=sum(record.stored_bytes for record in records),
    )


class Allowance:
    """Holds indexing to a tenant's ``kv_bytes``."""

    def __init__(self, state: StateStore, tenants: TenantStore) -> None:
        self._state, self._tenants = state, tenants

    def check(self, tenant: str, video: str, recipe: str, *, chunks: int | None = None, replaces: bool = False) -> None:
        """Whether an index may grow by the chunks it lacks, or by any, as long as nobody knows how many it will have.

        An index that cannot fit is refused as soon as its first chunk tells, not when it is nearly done. What several
        workers do at the same moment they do not know of each other: each may go too far by one chunk. What the index
        ``replaces`` does not count.

        Raises QuotaExceeded, StoreUnavailable.
        """
        most = self._most(tenant)
        if most is None:
            return
        records = self._state.videos(tenant)
        if replaces:
            records = [record for record in records if record.video != video or record.recipe.digest == recipe]
        held = held_by(records).kv_bytes
        own = [record for record in records if record.video == video and record.recipe.digest == recipe]
        done = sum(record.chunks for record in own)
        if chunks is not None and done >= chunks and held <= most:
            return
        needs = held + 1
        if done and chunks is not None:  # the last chunk may be a small one
            needs = held + max(chunks - done - 1, 0) * sum(record.stored_bytes for record in own) // done
        if needs > most:
            takes = f", which takes about {needs - held} more" if needs > held + 1 else ""
            raise QuotaExceeded(
                f"tenant {tenant} holds {held} bytes of blocks and may hold {most}: no room for all of video {video}"
                f"{takes}. Delete videos, let go of fine detail (`x2l decay`), or ask for more; then retry the "
                "job, which goes on where it stopped"
            )

    def _most(self, tenant: str) -> int | None:
        try:
            return self._tenants.tenant(tenant).quotas.kv_bytes
        except UnknownTenant:  # without keys, tenants need not have been created
            return None
