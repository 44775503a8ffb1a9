"""``x2l up``: the whole service in one process, for whoever is on this machine.

Blocks, manifests, jobs, tenants and originals are where the store is, by default all on disk, so that whatever was
accepted outlives the process. No server of blocks is started beside it: on one machine the disk's pages are in memory
anyway, and fine blocks in a server's memory would be gone with it.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal

from x2l_cluster.cli import opened
from x2l_cluster.cli.show import emit, err
from x2l_cluster.cli.text import plain
from x2l_cluster.errors import InvalidInput

if TYPE_CHECKING:
    from x2l_cluster.service.local import LocalService

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    *,
    host: str,
    port: int,
    api_keys: Literal["open", "required"] | None,
    roots: Sequence[Path],
    model: str | None,
    store: str | None,
    fine_store: str | None,
    as_json: bool,
) -> None:
    """Serves until SIGINT or SIGTERM, then closes everything: streams and answers have some seconds to end, jobs go
    back into line at their next chunk.

    Raises InvalidInput for an address that cannot be listened on, before anything is loaded; otherwise as
    :meth:`~x2l_cluster.service.local.LocalService.open`.
    """
    try:
        from x2l_cluster.api import KeyAccess, OpenAccess, create_app
        from x2l_cluster.api.serve import server_of
    except ImportError as error:
        raise InvalidInput(f"serving needs {error.name}: pip install 'x2l_cluster[api]'") from None

    keys = api_keys or opened.settings().api_keys
    with (
        _told_to_stop() as stopping,
        _listening(host, port) as listener,
        _service(roots, model, store, fine_store) as service,
    ):
        access = KeyAccess(service.state.tenants) if keys == "required" else OpenAccess()
        server = server_of(create_app(service, access))

        def stop() -> None:
            server.should_exit = True

        stopping(stop)
        _tell(_url(host, listener), host, keys, as_json=as_json)
        asyncio.run(server.serve(sockets=[listener]))
        err.print("stopping; jobs that have not ended go on with the next x2l up", soft_wrap=True)


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


def _service(roots: Sequence[Path], model: str | None, store: str | None, fine_store: str | None) -> LocalService:
    wanted = opened.settings()
    name, place = model or wanted.model, store or wanted.store
    with opened.loading(name):
        from x2l_cluster.engine import Stores, VideoEngine, find_calibration
        from x2l_cluster.models import load_model
        from x2l_cluster.service.local import LocalOptions, LocalService

        lm = load_model(name, device=wanted.device, dtype=wanted.dtype)
        stores = Stores.open(place, fine=fine_store or wanted.fine_store, state=wanted.state, sources=wanted.sources)
        engine = VideoEngine(
            lm,
            stores,
            calibration=find_calibration(name, lm),
            cache_bytes=wanted.cache_bytes,
            decode_deadline_s=wanted.decode_deadline_s,
        )
        options = LocalOptions(roots=tuple(root.absolute() for root in roots))
        return LocalService.over(engine, store=wanted.state or place, model=name, options=options)


def _url(host: str, listener: socket.socket) -> str:
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{reached}]' if ':' in reached else reached}:{listener.getsockname()[1]}"


def _tell(url: str, host: str, keys: str, *, as_json: bool) -> None:
    if as_json:
        emit({"url": url, "api_keys": keys})
        sys.stdout.flush()  # whoever started this waits for it
    err.print(f"x2l is up at {plain(url)}", style="bold", soft_wrap=True)
    err.print(f"  x2l index FILE --url {url}\n  x2l ask VIDEO QUESTION --url {url}", soft_wrap=True)
    if keys == "open" and host not in _LOOPBACK:
        err.print("whoever reaches this address may do everything; --api-keys required asks for keys", style="yellow")
