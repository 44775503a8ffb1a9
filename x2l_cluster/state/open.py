"""State by URL, as settings and the command line name it: manifests alone, or all that a service keeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, urlencode

from x2l_cluster.errors import InvalidInput
from x2l_cluster.kv.connect import SCHEMES
from x2l_cluster.kv.open import bare, split_routes
from x2l_cluster.state.base import StateStore
from x2l_cluster.state.disk import DiskState
from x2l_cluster.state.jobs import JobQueue
from x2l_cluster.state.ledger import Ledger
from x2l_cluster.state.ledger_sqlite import SqliteLedger
from x2l_cluster.state.memory import MemoryState
from x2l_cluster.state.moves import Policy
from x2l_cluster.state.queue import Jobs
from x2l_cluster.state.sessions import Sessions, SessionStore
from x2l_cluster.state.tenancy import Tenants
from x2l_cluster.state.tenants import TenantStore


def open_state(url: str) -> StateStore:
    """The manifests in the place a URL names; close them when done.

    Takes what :func:`x2l_cluster.kv.open.open_kv` takes, so that one setting serves both; of several stores by kind,
    state goes where "the rest" goes, of several tiers into the last, as if nothing were wrapped around that.
    ``disk:PATH`` keeps it under ``PATH/state``. A server that is on its disk before it answers (``appendfsync always``)
    is declared so: ``redis://…?durable=true``.

    Raises:
        InvalidInput: no such kind of store.
        StoreUnavailable: the place cannot be used.
    """
    scheme, rest = _place(url)
    if scheme == "memory":
        return MemoryState()
    if scheme == "disk":
        return DiskState(Path(rest).expanduser() / "state")
    from x2l_cluster.state.remote import RemoteState

    server, durable = _server(rest)
    return RemoteState(server, durable=durable)


def open_ledger(url: str, space: str) -> Ledger:
    """Records of a space (``jobs``, ``tenants``, ``sessions``) in that place; ``disk:PATH`` in ``PATH/service``.

    Raises: as :func:`open_state`.
    """
    scheme, rest = _place(url)
    if scheme == "memory":
        return SqliteLedger()
    if scheme == "disk":
        return SqliteLedger(Path(rest).expanduser().absolute() / "service" / f"{space}.db")
    from x2l_cluster.state.ledger_remote import RemoteLedger

    server, durable = _server(rest)
    return RemoteLedger(server, space, durable=durable)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that a service keeps besides blocks and sources. Closes what it opened."""

    manifests: StateStore
    jobs: JobQueue
    tenants: TenantStore
    sessions: SessionStore
    opened: ExitStack

    @classmethod
    def open(
        cls,
        url: str,
        *,
        manifests: StateStore | None = None,
        policy: Policy | None = None,
        clock: Callable[[], float] = time.time,
    ) -> State:
        """As :func:`open_state`. ``manifests`` that are open already are used, and left open: an engine has its own."""
        with ExitStack() as stack:
            kept = manifests or stack.enter_context(open_state(url))
            jobs = stack.enter_context(Jobs(open_ledger(url, "jobs"), policy=policy, clock=clock))
            tenants = stack.enter_context(Tenants(open_ledger(url, "tenants"), clock=clock))
            sessions = stack.enter_context(Sessions(open_ledger(url, "sessions"), clock=clock))
            return cls(manifests=kept, jobs=jobs, tenants=tenants, sessions=sessions, opened=stack.pop_all())

    @property
    def durable(self) -> bool:
        return self.manifests.durable and self.jobs.durable

    def sweep(self) -> int:
        """Does what is due where nobody else does: see ``sweep`` of jobs and sessions. Returns how much that was."""
        return self.jobs.sweep() + self.sessions.sweep()

    def close(self) -> None:
        self.opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _place(url: str) -> tuple[str, str]:
    """``memory``, ``disk`` and a path, or ``server`` and its URL."""
    url = bare(split_routes(url)[1])
    scheme, colon, rest = url.partition(":")
    if scheme == "memory" and colon and not rest:
        return scheme, ""
    if scheme == "disk" and rest:
        return scheme, rest
    if scheme in SCHEMES and rest.startswith("//"):
        return "server", url
    raise InvalidInput(
        f"no state store is called {scheme or url!r}; give memory:, disk:PATH, redis://… or unix:///SOCKET"
    )


def _server(url: str) -> tuple[str, bool]:
    """The URL without its ``durable=…``, which is not redis-py's, and what that says."""
    address, _, query = url.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    declared = options.pop("durable", "").lower() in ("true", "yes", "1")
    return f"{address}?{urlencode(options)}" if options else address, declared
