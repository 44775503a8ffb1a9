"""Stores by URL, as settings and the command line name them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from urllib.parse import parse_qsl

from x2l_cluster.errors import InvalidInput
from x2l_cluster.kv.connect import SCHEMES
from x2l_cluster.kv.disk import DiskKV
from x2l_cluster.kv.measured import Measured
from x2l_cluster.kv.memory import MemoryKV
from x2l_cluster.kv.routed import RoutedKV
from x2l_cluster.kv.store import KVStore
from x2l_cluster.types import Kind

HOST_BUDGET_BYTES = 1 << 30
TIERS = "tiers:"
WRAPPERS = ("faulty", "bounded")
USAGE = (
    "memory:, disk:PATH, host:FILE?budget=BYTES, redis://…, valkey://…, unix:///SOCKET, "
    "bounded:budget=BYTES@URL, faulty:seed=1,flip=0.1@URL, "
    "several as tiers, fastest first: tiers:URL|URL|…, or by kind: l=URL;h=URL;x=URL;DEFAULT"
)


def open_kv(url: str) -> KVStore:
    """The store a URL names; close it when done.

    ``memory:``; ``disk:PATH`` (in ``PATH/kv``); ``host:FILE?budget=BYTES`` (FILE on a tmpfs, ``/dev/shm/x2l``);
    ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://`` or ``unix:///SOCKET``; several as tiers, fastest first,
    ``tiers:host:/dev/shm/x2l|unix:///run/valkey.sock|disk:~/.x2l`` (what each is for: :func:`~.tiered.ladder`); or
    several by kind, ``l=unix:///run/valkey.sock;disk:~/.x2l``, the last one for the rest. Before any of them,
    ``bounded:budget=50000000000,quota=1000000000@`` keeps it within limits by evicting
    (:class:`~x2l_cluster.kv.evict.Limits`; ``ttl=SECONDS`` too, on a server), and
    ``faulty:seed=7,flip=0.05,kinds=l@`` makes it fail on purpose (:class:`~x2l_cluster.kv.faulty.FaultPlan`).

    Raises:
        InvalidInput: no such kind of store, or none for the rest.
        StoreUnavailable: the place cannot be used.
    """
    routes, default = split_routes(url)
    with ExitStack() as opened:
        stores = {kind: opened.enter_context(_open_one(place)) for kind, place in routes.items()}
        rest = opened.enter_context(_open_one(default))
        opened.pop_all()
    return RoutedKV(stores, rest) if stores else rest


def split_routes(url: str) -> tuple[dict[str, str], str]:
    """URLs by kind, and the one for the rest."""
    *parts, default = url.split(";")
    routes = {}
    for part in parts:
        kind, _, place = part.partition("=")
        if kind not in set(Kind) or not place:
            raise InvalidInput(f"store {url!r}: {part!r} is no kind of block with a store; give {USAGE}")
        routes[kind] = place
    return routes, default


def bare(url: str) -> str:
    """The URL of the place itself: without what is wrapped around it; of several tiers the last."""
    while True:
        if url.startswith(TIERS):
            url = split_tiers(url)[-1]
        elif url.partition(":")[0] in WRAPPERS and "@" in url:
            url = url.partition("@")[2]
        else:
            return url


def split_tiers(url: str) -> list[str]:
    """URLs of the tiers, fastest first. Raises InvalidInput for fewer than two, and for tiers among them."""
    places = url.removeprefix(TIERS).split("|")
    if len(places) < 2 or not all(places) or any(TIERS in place for place in places):
        raise InvalidInput(f"store {url!r}: tiers are at least two stores, fastest first; give {USAGE}")
    return places


def _open_one(url: str) -> KVStore:
    store = _open_place(url)
    return store if TIERS in url else Measured(store)  # tiers are measured each


def _open_tiers(places: list[str]) -> KVStore:
    from x2l_cluster.kv.host import HostKV
    from x2l_cluster.kv.tiered import TieredKV, ladder

    with ExitStack() as opened:
        stores = [opened.enter_context(_open_place(place)) for place in places]
        node = next((store.node for store in stores if isinstance(store, HostKV)), None)
        tiered = TieredKV(ladder(stores), node=node)
        opened.pop_all()
    return tiered


def _open_place(url: str) -> KVStore:
    if url.startswith(TIERS):
        return _open_tiers(split_tiers(url))
    scheme, colon, rest = url.partition(":")
    if scheme in WRAPPERS and "@" in rest:
        options, _, place = rest.partition("@")
        return _open_wrapped(scheme, options, place)
    if scheme == "memory" and colon and not rest:
        return MemoryKV()
    if scheme == "disk" and rest:
        return DiskKV(Path(rest).expanduser() / "kv")
    if scheme == "host" and rest:
        return _open_host(rest)
    if scheme in SCHEMES and rest.startswith("//"):
        from x2l_cluster.kv.remote import RemoteKV

        return RemoteKV(url)
    raise InvalidInput(f"no store is called {scheme or url!r}; give {USAGE}")


def _open_wrapped(wrapper: str, options: str, url: str) -> KVStore:
    if wrapper == "bounded":
        return _open_bounded(options, url)
    from x2l_cluster.kv.faulty import FaultPlan, FaultyKV

    plan = FaultPlan.parse(options)
    return FaultyKV(_open_place(url), plan)


def _open_bounded(options: str, url: str) -> KVStore:
    from x2l_cluster.kv.bounded import BoundedKV
    from x2l_cluster.kv.evict import Limits
    from x2l_cluster.kv.evictor import Evictor
    from x2l_cluster.kv.remote import RemoteKV

    lives = [part for part in options.split(",") if part.startswith("ttl=")]
    limits = Limits.parse(",".join(part for part in options.split(",") if part not in lives))
    if not lives:
        store = _open_place(url)
    elif url.partition(":")[0] in SCHEMES and lives[-1][4:].isdecimal():
        store = RemoteKV(url, ttl_s=int(lives[-1][4:]))
    else:
        raise InvalidInput(f"{lives[-1]} is for blobs in a server, in whole seconds; {url.partition(':')[0]}: has none")
    if not isinstance(store, MemoryKV | DiskKV | RemoteKV):
        store.close()
        raise InvalidInput("memory:, disk:PATH and servers can be bounded; an arena keeps to its budget by itself")
    return BoundedKV(store, Evictor(store, limits))


def _open_host(rest: str) -> KVStore:
    path, _, query = rest.partition("?")
    options = dict(parse_qsl(query))
    budget = options.pop("budget", str(HOST_BUDGET_BYTES))
    if options or not budget.isdigit() or not path:
        raise InvalidInput(f"host:{rest} is no arena; give host:FILE?budget=BYTES, with FILE on a tmpfs")
    from x2l_cluster.kv.host import HostKV

    return HostKV(Path(path), budget_bytes=int(budget))
