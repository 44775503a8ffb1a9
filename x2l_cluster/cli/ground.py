"""What a service on this machine stands on: a folder, two Valkeys, a piece of shared memory.

State (manifests, jobs, tenants, sessions) is in a Valkey that has every write on the disk before it answers; fine
blocks are in another's memory, within a bound, packed into a file when all is taken down in order, and else gone;
coarse blocks, score indexes and originals are files, the blocks with copies in shared memory. All of it can be used by
several processes of this user at once.

One process brings it up. That is a kernel lock on a file that tells where things are, so it ends with the process,
however that ends. What a killed one leaves (sockets, shared memory) is swept by the next to start, and so is a server
that outlived it.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from x2l_cluster.cli import opened
from x2l_cluster.errors import InvalidInput, StoreUnavailable
from x2l_cluster.kv.embedded import EmbeddedValkey
from x2l_cluster.kv.files import Held, Scratch, errors_as_store, held, private_folder

_MEMORY: Final = Path("/dev/shm")
_ARENA_MIN_BYTES: Final = 16 << 20
"""Less shared memory than this is not worth a tier."""
_SERVER_OWN_BYTES: Final = 64 << 20
"""What a server may hold beside blocks: their lists, connections, transfers."""
_DISK_S: Final = 60.0
"""What a server gets to read what it kept, and to write it."""
_PATIENCE_S: Final = 1.0
"""Somebody may be looking whether the folder is in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Where things are, as :meth:`~x2l_cluster.engine.stores.Stores.open` and ``State.open`` take it.

    Attributes:
        store: coarse blocks and score indexes.
        fine: fine blocks.
        state: everything small that must last.
        sources: originals.
    """

    folder: Path
    store: str
    fine: str
    state: str
    sources: str

    @property
    def urls(self) -> dict[str, str]:
        """As settings of other commands: ``X2L_STORE``, ``X2L_FINE_STORE``, ``X2L_STATE``, ``X2L_SOURCES``."""
        return {"store": self.store, "fine_store": self.fine, "state": self.state, "sources": self.sources}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Ground that this process keeps up.

    Attributes:
        fine_lost: set when fine blocks may be gone: at the start, and when the server that had them ended by itself.
    """

    ground: Ground
    lock: Held
    fine_lost: threading.Event

    def tell(self, url: str | None) -> None:
        """Notes where things are and where the service is reached, for whoever else comes to this folder."""
        _note(self.lock.fd, ({} if url is None else {"url": url}) | asdict(self.ground))


@contextmanager
def standing(folder: Path, *, fine_bytes: int, host_bytes: int) -> Iterator[Standing]:
    """Brings everything up over a folder, made if missing, and takes it down again.

    Args:
        fine_bytes: memory for fine blocks; the coldest go when it is full.
        host_bytes: shared memory for copies of coarse blocks; less is taken where there is less, none where there is
            little, 0 takes none.

    Raises InvalidInput when another process does so already, or for a name that cannot stand in the URL of a store;
    StoreUnavailable when the folder cannot be used or a server does not start.
    """
    folder = _checked(folder)
    with ExitStack() as up:
        lock = up.enter_context(_taken(folder))
        lost = threading.Event()
        lost.set()
        state = up.enter_context(_state(folder, revive=True))
        memory = up.enter_context(
            EmbeddedValkey(
                home=folder / "fine",
                maxmemory_bytes=fine_bytes + _SERVER_OWN_BYTES,
                packs_up=True,
                revive=True,
                on_end=lost.set,
                timeout_s=_DISK_S,
            )
        )
        disk = f"disk:{folder / 'coarse'}"
        arena = up.enter_context(_arena(host_bytes))
        ground = Ground(
            folder=folder,
            store=disk if arena is None else f"tiers:{arena}|{disk}",
            fine=f"bounded:budget={fine_bytes}@{memory.url}",
            state=f"{state.url}?durable=true",
            sources=str(folder / "sources"),
        )
        standing_here = Standing(ground=ground, fine_lost=lost, lock=lock)
        standing_here.tell(None)
        yield standing_here


@contextmanager
def visiting(folder: Path, *, fine_bytes: int) -> Iterator[Ground]:
    """The ground of the service that is up, or one that is brought up for as long as this lasts.

    Raises as :func:`standing`; StoreUnavailable while a service is being brought up.
    """
    folder = _checked(folder)
    if (told := _told(folder)) is None:
        with standing(folder, fine_bytes=fine_bytes, host_bytes=0) as brought:
            yield brought.ground
    else:
        yield Ground(**told | {"folder": folder})


@contextmanager
def state_of(folder: Path) -> Iterator[str]:
    """The URL of the state in a folder: that of the service which is up, or of a server for as long as this lasts.

    Raises as :func:`standing`; StoreUnavailable while a service is being brought up.
    """
    folder = _checked(folder)
    if (told := _told(folder)) is not None:
        yield str(told["state"])
        return
    with _taken(folder), _state(folder, revive=False) as server:
        yield f"{server.url}?durable=true"


def _told(folder: Path) -> dict[str, Any] | None:
    """The ground that another process keeps up there; None when none does."""
    with errors_as_store(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with held(folder / "lock") as lock:
            if lock.mine:
                return None
            told = _read(folder / "lock")
    if "state" not in told:
        raise StoreUnavailable(f"{folder} is just being taken into use by process {told.get('pid')}; try again")
    return {field.name: told[field.name] for field in fields(Ground)}


def service_state(data: Path | None) -> AbstractContextManager[str]:
    """As :func:`state_of`, of this folder; else of what the environment names (``X2L_STATE`` or ``X2L_DATA``)."""
    wanted = opened.settings()
    if data is None and wanted.state is not None:
        return nullcontext(wanted.state)
    return state_of(data or Path(wanted.data))


def _state(folder: Path, *, revive: bool) -> EmbeddedValkey:
    return EmbeddedValkey(home=folder / "state", durable=True, revive=revive, timeout_s=_DISK_S)


def _checked(folder: Path) -> Path:
    folder = folder.expanduser().absolute()
    if any(mark in str(folder) for mark in "|;"):
        raise InvalidInput(f"the folder {folder} has a | or ; in its name, which separate stores; give another")
    return folder


@contextmanager
def _taken(folder: Path) -> Iterator[Held]:
    """Raises InvalidInput when it is another's, saying whose."""
    with errors_as_store(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with held(folder / "lock", patience_s=_PATIENCE_S) as lock:
        if not lock.mine:
            told = _read(folder / "lock")
            use = f" at {told['url']}: use that (--url {told['url']})," if "url" in told else ", or is about to: wait,"
            raise InvalidInput(
                f"process {told.get('pid')} serves {folder} already{use} stop it, or give this one another folder "
                "(--data)"
            )
        _note(lock.fd, {})
        yield lock


def _note(fd: int, facts: dict[str, Any]) -> None:
    text = json.dumps({"pid": os.getpid(), **facts}, default=str).encode()
    os.ftruncate(fd, 0)
    os.pwrite(fd, text, 0)


def _read(lock: Path) -> dict[str, Any]:
    """What its holder has noted; nothing yet while that is being written."""
    with suppress(OSError, ValueError):
        told = json.loads(lock.read_bytes())
        return told if isinstance(told, dict) else {}
    return {}


@contextmanager
def _arena(host_bytes: int) -> Iterator[str | None]:
    """The URL of shared memory that is given back at the end; None where there is none to be had."""
    try:
        room = min(host_bytes, shutil.disk_usage(_MEMORY).free // 2)
        if room < _ARENA_MIN_BYTES:
            raise StoreUnavailable(f"{_MEMORY} has no room for an arena")
        scratch = Scratch(private_folder(_MEMORY / f"x2l-{os.geteuid()}"))
    except (OSError, StoreUnavailable):
        yield None
        return
    try:
        yield f"host:{scratch.folder / 'arena'}?budget={room}"
    finally:
        scratch.close()
