"""What commands open and close: settings, state, engines; and what Ctrl-C does to an indexing run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import typer

from x2l_cluster.cli.show import err
from x2l_cluster.cli.text import plain
from x2l_cluster.types import LOCAL_TENANT

if TYPE_CHECKING:
    from x2l_cluster.engine import VideoEngine
    from x2l_cluster.settings import Settings
    from x2l_cluster.state.base import StateStore
    from x2l_cluster.stores import Stores

UP = "up:"
_STOPPING = b"\nstopping at the next chunk boundary; sealed chunks are kept (Ctrl-C again to stop at once)\n"


def settings() -> Settings:
    """The environment's. A variable that cannot be read is wrong usage."""
    from pydantic import ValidationError

    from x2l_cluster.settings import Settings

    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(f"X2L_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        raise typer.BadParameter(f"in the environment: {wrong}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """URLs of what is kept; None: beside the blocks."""

    store: str
    fine: str | None
    state: str | None
    sources: str | None


@contextmanager
def places(store: str | None, fine_store: str | None = None) -> Iterator[Places]:
    """By options, else by environment; ``up:`` and ``up:FOLDER`` are all that ``x2l up`` keeps, be it up or not."""
    wanted = settings()
    url = store or wanted.store
    if not url.startswith(UP):
        fine = fine_store or wanted.fine_store
        yield Places(store=url, fine=fine, state=wanted.state, sources=wanted.sources)
        return
    from x2l_cluster.cli.ground import visiting

    folder = Path(url.removeprefix(UP) or wanted.data)
    with visiting(folder, fine_bytes=wanted.fine_bytes) as ground:
        yield Places(store=ground.store, fine=ground.fine, state=ground.state, sources=ground.sources)


@contextmanager
def state(store: str | None) -> Iterator[StateStore]:
    """The record of what is indexed, without a model."""
    from x2l_cluster.state.open import open_state

    with places(store) as where, open_state(where.state or where.store) as opened:
        yield opened


@contextmanager
def stores(store: str | None, fine_store: str | None) -> Iterator[Stores]:
    """Everything kept of videos, without a model."""
    from x2l_cluster.stores import Stores

    with places(store, fine_store) as where:
        opened = Stores.open(where.store, fine=where.fine, state=where.state, sources=where.sources)
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def engine(
    model: str | None, store: str | None, fine_store: str | None, *, video: str | None = None
) -> Iterator[VideoEngine]:
    """An engine by options, else by environment. An unknown ``video`` is told before a model is loaded for it."""
    from x2l_cluster.state.open import open_state

    with places(store, fine_store) as where:
        if video is not None:
            with open_state(where.state or where.store) as known:
                known.manifest(LOCAL_TENANT, video)
        elsewhere = {"fine_store": where.fine, "state": where.state, "sources": where.sources}
        with _loaded(model or settings().model, where.store, **elsewhere) as loaded:
            yield loaded


@contextmanager
def unkept(model: str | None) -> Iterator[VideoEngine]:
    """An engine that keeps nothing, wherever the environment says that things are kept."""
    with _loaded(model or settings().model, "memory:") as loaded:
        yield loaded


@contextmanager
def _loaded(model: str, store: str, **elsewhere: str | None) -> Iterator[VideoEngine]:
    wanted = settings()
    with loading(model):
        from x2l_cluster.engine import VideoEngine

        loaded = VideoEngine.from_pretrained(
            model,
            store=store,
            device=wanted.device,
            dtype=wanted.dtype,
            cache_bytes=wanted.cache_bytes,
            decode_deadline_s=wanted.decode_deadline_s,
            **elsewhere,
        )
    with loaded:
        yield loaded


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Says so while a model is loaded."""
    if model.count("/") != 1 or Path(model).is_dir():
        # Only a download deserves a bar of its own. Read by the hub's client when it is imported.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with _insistent(), err.status(f"loading {plain(model)}"):
        yield


@contextmanager
def _insistent() -> Iterator[None]:
    """A Ctrl-C inside is raised at the end again: libraries that are being imported keep what they catch."""
    came = False

    def asked(_number: int, _frame: FrameType | None) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, asked)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Yields an event that the first Ctrl-C sets; the second raises KeyboardInterrupt."""
    cancel = threading.Event()

    def asked(_number: int, _frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()
        os.write(2, _STOPPING)  # not print: the main thread may be in the middle of one

    before = signal.signal(signal.SIGINT, asked)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)
