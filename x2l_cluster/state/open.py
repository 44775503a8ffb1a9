"""Stores by URL, as settings and the command line name them."""

from __future__ import annotations

from pathlib import Path

from x2l_cluster.errors import InvalidInput
from x2l_cluster.kv.connect import SCHEMES
from x2l_cluster.kv.open import bare, split_routes
from x2l_cluster.state.base import StateStore
from x2l_cluster.state.disk import DiskState
from x2l_cluster.state.memory import MemoryState


def open_state(url: str) -> StateStore:
    """The store a URL names; close it when done.

    Takes what :func:`x2l_cluster.kv.open.open_kv` takes, so that one setting serves both; of several stores by kind,
    state goes where "the rest" goes, of several tiers into the last, as if nothing were wrapped around that.
    ``disk:PATH`` keeps it under ``PATH/state``.

    Raises:
        InvalidInput: no such kind of store.
        StoreUnavailable: the place cannot be used.
    """
    url = bare(split_routes(url)[1])
    scheme, colon, rest = url.partition(":")
    if scheme == "memory" and colon and not rest:
        return MemoryState()
    if scheme == "disk" and rest:
        return DiskState(Path(rest).expanduser() / "state")
    if scheme in SCHEMES and rest.startswith("//"):
        from x2l_cluster.state.remote import RemoteState

        return RemoteState(url)
    raise InvalidInput(
        f"no state store is called {scheme or url!r}; give memory:, disk:PATH, redis://… or unix:///SOCKET"
    )
