"""Which replica answers questions about a video: the one that has its H hot already.

Ray's custom request routers are *alpha*: whatever changes there is mended in this file, and no answer depends on it. A
replica that does not know a video reads its H from the tiers, so a wrong turn costs time, never an answer.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

import xxhash
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

AFFINITY = "affinity"
"""Keyword argument of a call: calls with equal values go to the same replica for as long as it has room."""


class VideoAffinity(RequestRouter):  # type: ignore[misc]  # Ray is not typed
    """Equal :data:`AFFINITY` goes to equal replicas; without one, two at random, the idler wins.

    By rendezvous hashing over the replicas' ids: it needs no memory, so every gateway agrees, and a replica that comes
    or goes moves only its own share of the videos. A replica whose queue is full passes its videos on to the next in
    their own order, so that a video many ask about spreads over two replicas before it spreads over all.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas, tried in turn; among those of one rank Ray takes the idlest."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # all of them are tried each time: then wait
            affinity = pending_request.kwargs.get(AFFINITY)
            if affinity:
                by_name = {str(replica.replica_id): replica for replica in candidate_replicas}
                return [[by_name[name]] for name in ranked(affinity, list(by_name))]
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]


def ranked(affinity: Hashable, names: Sequence[str]) -> list[str]:
    """Names by how well they fit: each has its own order of preference, and the orders have nothing in common."""
    return sorted(names, key=lambda name: xxhash.xxh3_64_intdigest(f"{affinity}\0{name}".encode()), reverse=True)
