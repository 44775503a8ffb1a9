"""What makes fine detail again that a store in memory has lost."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Final

from x2l_cluster.errors import UnknownVideo
from x2l_cluster.metrics import kind_of
from x2l_cluster.service.intake import repair
from x2l_cluster.state.open import State
from x2l_cluster.stores import Stores
from x2l_cluster.types import LOCAL_TENANT, IndexStatus, Kind, Manifest

LOG: Final = logging.getLogger(__name__)
LAST: Final = -100
"""The priority of such work: whatever people ask for goes first."""


def heal(weights: str, stores: Stores, state: State) -> int:
    """Queues repairs of all indexes that are to have fine detail and have none; returns how many.

    What was let go of on purpose, is another model's, or was left half done by a cancelled job is not made again.
    Raises StoreUnavailable.
    """
    queued = 0
    for tenant in sorted({LOCAL_TENANT, *(tenant.name for tenant in state.tenants.tenants())}):
        working = {job.video for job in state.jobs.jobs(tenant) if not job.state.final}
        for record in stores.state.videos(tenant):
            if record.status is not IndexStatus.READY and record.video not in working:
                continue
            with suppress(UnknownVideo):  # deleted meanwhile
                manifest = stores.state.manifest(tenant, record.video, record.recipe.digest)
                if manifest.recipe.weights == weights and _lost(stores, manifest):
                    repair(stores, state.jobs, manifest, priority=LAST)
                    queued += 1
    if queued:
        LOG.info("fine detail of %d indexes is gone and is made again", queued)
    return queued


def _lost(stores: Stores, manifest: Manifest) -> bool:
    if not manifest.size_bytes(Kind.L):
        return False
    held = stores.kv.route(Kind.L).keys(manifest.tenant, manifest.video)
    return not any(kind_of(key.kind) == Kind.L and key.recipe == manifest.recipe.digest for key in held)
