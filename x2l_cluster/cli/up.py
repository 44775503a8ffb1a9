"""``x2l up``: the whole service on one machine, for whoever is on it.

It stands on :mod:`~x2l_cluster.cli.ground`; the work is done by one engine in this process or, over the same ground, by
workers on Ray.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, Literal

from x2l_cluster.cli import opened
from x2l_cluster.cli.ground import Ground, Standing, standing
from x2l_cluster.cli.show import emit, err
from x2l_cluster.cli.text import plain
from x2l_cluster.errors import InvalidInput, X2LError

if TYPE_CHECKING:
    from x2l_cluster.service import Service
    from x2l_cluster.settings import Settings
    from x2l_cluster.state.tenants import TenantStore

LOG: Final = logging.getLogger(__name__)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_LEASE_S: Final = 10.0
"""How long the jobs of one that was killed wait for the next one to take them over."""
_LOOK_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Who does the work.

    Attributes:
        service: what is served over HTTP.
        tenants: whose keys are asked for.
        heal: queues what makes lost fine detail again; raises X2LError when it has to be called once more.
    """

    service: Service
    tenants: TenantStore
    heal: Callable[[], object]


def serve(
    *,
    host: str,
    port: int,
    api_keys: Literal["open", "required"] | None,
    roots: Sequence[Path],
    model: str | None,
    data: Path | None,
    ray: bool,
    address: str | None,
    while_read: bool,
    as_json: bool,
) -> None:
    """Serves until SIGINT or SIGTERM (or, with ``while_read``, until standard input ends), then closes everything:
    streams and answers have some seconds to end, jobs go back into line at their next chunk.

    With ``ray`` or the ``address`` of a cluster, workers on Ray index and answer.

    Raises InvalidInput for an address that cannot be listened on and for a folder that is served already, before
    anything is loaded; StoreUnavailable when what it stands on cannot be had; otherwise as
    :meth:`~x2l_cluster.service.local.LocalService.open`.
    """
    try:
        from x2l_cluster.api import KeyAccess, OpenAccess, create_app
        from x2l_cluster.api.serve import server_of
    except ImportError as error:
        raise InvalidInput(f"serving needs {error.name}: pip install 'x2l_cluster[up]'") from None

    wanted = opened.settings()
    keys = api_keys or wanted.api_keys
    folder = data or Path(wanted.data)
    name = model or wanted.model
    with (
        _told_to_stop() as stopping,
        standing(folder, fine_bytes=wanted.fine_bytes, host_bytes=wanted.host_bytes) as place,
        _listening(host, port) as listener,
        (
            on_ray(place.ground, wanted, name, roots, address)
            if ray or address
            else in_this_process(place.ground, wanted, name, roots)
        ) as backend,
        _healing(place, backend),
        _tidying(place.ground, wanted),
    ):
        access = KeyAccess(backend.tenants) if keys == "required" else OpenAccess()
        server = server_of(create_app(backend.service, access))

        def stop() -> None:
            server.should_exit = True

        stopping(stop)
        if while_read:
            threading.Thread(target=_at_end_of_input, args=(stop,), daemon=True).start()
        url = _url(host, listener)
        place.tell(url)
        _tell(url, host, keys, place.ground, as_json=as_json)
        asyncio.run(server.serve(sockets=[listener]))
        err.print("stopping; jobs that have not ended go on with the next x2l up", soft_wrap=True)


@contextmanager
def in_this_process(ground: Ground, wanted: Settings, model: str, roots: Sequence[Path]) -> Iterator[Backend]:
    """One engine indexes and answers. Raises as :meth:`LocalService.open`."""
    with opened.loading(model):
        from x2l_cluster.engine import Stores, VideoEngine, find_calibration
        from x2l_cluster.models import load_model
        from x2l_cluster.service.local import LocalOptions, LocalService

        lm = load_model(model, device=wanted.device, dtype=wanted.dtype)
        engine = VideoEngine(
            lm,
            Stores.open(ground.store, fine=ground.fine, state=ground.state, sources=ground.sources),
            calibration=find_calibration(model, lm),
            cache_bytes=wanted.cache_bytes,
            decode_deadline_s=wanted.decode_deadline_s,
        )
        options = LocalOptions(
            roots=tuple(root.absolute() for root in roots or wanted.roots),
            lease_s=_LEASE_S,
            max_source_bytes=wanted.max_source_bytes,
            fetch_within_s=wanted.fetch_within_s,
            fetch_allow=wanted.fetch_allow,
        )
        service = LocalService.over(engine, store=ground.state, model=model, options=options)
    with service:
        yield Backend(service=service, tenants=service.state.tenants, heal=service.heal)


@contextmanager
def on_ray(
    ground: Ground, wanted: Settings, model: str, roots: Sequence[Path], address: str | None
) -> Iterator[Backend]:
    """Workers of a Ray cluster index and answer. Its nodes must be on this machine, or see its files and sockets.

    Raises as :func:`x2l_cluster.cluster.whole.on_ray`.
    """
    try:
        from x2l_cluster.cluster import whole
    except ImportError as error:
        raise InvalidInput(f"workers on Ray need {error.name}: pip install 'x2l_cluster[cluster]'") from None

    chosen = {
        **ground.urls,
        "model": str(Path(model).absolute()) if Path(model).is_dir() else model,
        "roots": [str(root.absolute()) for root in roots or wanted.roots],
        "lease_s": _LEASE_S,
    }
    with ExitStack() as stack:
        with err.status("starting workers on Ray"):
            service = stack.enter_context(whole.on_ray(chosen, address=address))
        yield Backend(service=service, tenants=service.state.tenants, heal=service.heal)


@contextmanager
def _healing(place: Standing, backend: Backend) -> Iterator[None]:
    """Has fine detail made again, from a thread, whenever its memory was lost."""
    stopping = threading.Event()

    def heal() -> None:
        while not stopping.wait(_LOOK_S):
            if not place.fine_lost.is_set():
                continue
            place.fine_lost.clear()
            try:
                backend.heal()
            except X2LError as error:
                LOG.warning("lost fine detail cannot be looked for yet: %s", error)
                place.fine_lost.set()

    thread = threading.Thread(target=heal, name="x2l-healing", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


@contextmanager
def _tidying(ground: Ground, wanted: Settings) -> Iterator[None]:
    """Has the janitor make its passes, from a thread."""
    from x2l_cluster.stores.janitor import Rules, janitor_of

    rules = Rules(keep_s=wanted.keep_s, fine_s=wanted.fine_s, sweep_every_s=wanted.sweep_every_s)
    stopping = threading.Event()

    def tidy() -> None:
        while not stopping.wait(wanted.tidy_every_s):
            try:
                with janitor_of(
                    ground.store, fine=ground.fine, state=ground.state, sources=ground.sources, rules=rules
                ) as janitor:
                    janitor.once()
            except X2LError as error:
                LOG.warning("nothing can be tidied just now: %s", error)

    thread = threading.Thread(target=tidy, name="x2l-janitor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _at_end_of_input(stop: Callable[[], None]) -> None:
    for _ in sys.stdin:
        pass
    stop()


@contextmanager
def _told_to_stop() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Takes SIGINT and SIGTERM, which are KeyboardInterrupts until what is yielded has been told how to stop.

    While the server runs it takes them itself; at its end it raises them once more, to no effect.
    """
    stops: list[Callable[[], None]] = []

    def asked(_number: int, _frame: FrameType | None) -> None:
        if not stops:
            raise KeyboardInterrupt
        stops[-1]()

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stops.append
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InvalidInput(
                f"something listens on {host}:{port} already; if that is x2l, use it as it is, else give this one "
                "another --port (0 takes a free one)"
            ) from None
        raise InvalidInput(f"cannot listen on {host}:{port}: {error}; give another --host or --port") from None


def _url(host: str, listener: socket.socket) -> str:
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{reached}]' if ':' in reached else reached}:{listener.getsockname()[1]}"


def _tell(url: str, host: str, keys: str, ground: Ground, *, as_json: bool) -> None:
    if as_json:
        emit({"url": url, "api_keys": keys, "folder": str(ground.folder), "stores": ground.urls})
        sys.stdout.flush()  # whoever started this waits for it
    err.print(f"x2l is up at {plain(url)}", style="bold", soft_wrap=True)
    err.print(
        f"  export X2L_URL={url}\n  x2l index FILE\n  x2l ask VIDEO QUESTION\n"
        f"Ctrl-C stops it; {plain(str(ground.folder))} keeps its videos and jobs",
        soft_wrap=True,
    )
    if keys == "open" and host not in _LOOPBACK:
        err.print("whoever reaches this address may do everything; --api-keys required asks for keys", style="yellow")
