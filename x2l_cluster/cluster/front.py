"""The front of a service whose workers are in this process's cluster."""

from __future__ import annotations

from x2l_cluster.cluster.parts import RayParts
from x2l_cluster.cluster.place import Place
from x2l_cluster.cluster.workers import RayWorkers, answering
from x2l_cluster.service.front import FrontOptions, FrontService


def front(place: Place) -> FrontService:
    """Opens the stores; the workers need not be there yet. Raises InvalidInput, StoreUnavailable."""
    stores, handle = place.stores(), answering()
    return FrontService(
        stores,
        place.opened_state(stores),
        model=place.model,
        parts=RayParts(handle),
        workers=RayWorkers(handle),
        options=FrontOptions(roots=place.roots, max_source_bytes=place.max_source_bytes),
    )
