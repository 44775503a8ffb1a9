"""A real server on the loopback, in a thread, so that tests see what a client sees: streams, cuts, disconnects."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import uvicorn

from tests.service import MemoryService
from x2l_cluster.api import ApiSettings, Authenticator, OpenAccess, create_app
from x2l_cluster.api.serve import server_of
from x2l_cluster.errors import Forbidden, RateLimited, Unauthenticated

T = TypeVar("T")


class Keys(OpenAccess):
    """Keys of two tenants, one that is locked out and one that asks too often."""

    tenants: Mapping[str, str] = {"key-a": "anna", "key-b": "bert"}

    async def tenant(self, key: str | None) -> str:
        if key == "key-locked":
            raise Forbidden("this key is revoked")
        if key == "key-fast":
            raise RateLimited("more than 10 requests a second", retry_after_s=0.2)
        if key not in self.tenants:
            raise Unauthenticated("the service wants a key; send 'Authorization: Bearer KEY'")
        return self.tenants[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running one. Its service, a MemoryService if no other was given, belongs to its loop."""

    url: str
    service: Any
    loop: asyncio.AbstractEventLoop

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def advance(self, job: str, *, tenant: str = "local", **changes: object) -> None:
        self.do(self.service.advance(tenant, job, **changes))

    def until(self, true: Any) -> None:
        """Waits until the service's state is so."""

        async def wait() -> None:
            while not true():
                await asyncio.sleep(0.005)

        self.do(asyncio.wait_for(wait(), 20))


class CuttingProxy:
    """Stands before a server and cuts each connection after so many bytes of responses, as ``cuts`` says in turn.

    When those are used up, nothing is cut any more.
    """

    def __init__(self, server: Server, cuts: Sequence[int]) -> None:
        self._server, self._left = server, list(cuts)
        self._upstream = int(server.url.rpartition(":")[2])
        self.connections = self.open = 0

    async def _start(self) -> str:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        left = self._left.pop(0) if self._left else 1 << 60
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)

        async def forward() -> None:
            while data := await reader.read(1 << 16):
                up_writer.write(data)
                await up_writer.drain()
            up_writer.close()  # whoever listens behind learns that the client has left

        sending = asyncio.create_task(forward())
        with suppress(OSError):
            while left and (data := await up_reader.read(min(left, 1 << 16))):
                left -= len(data)
                writer.write(data)
                await writer.drain()
        sending.cancel()
        for end in (writer, up_writer):
            end.close()
            with suppress(OSError):
                await end.wait_closed()
        self.open -= 1

    def __enter__(self) -> Self:
        self.url = self._server.do(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        async def stop() -> None:
            self._listener.close()

        self._server.do(stop())
        self._server.until(lambda: self.open == 0)


@contextmanager
def serving(
    *, keys: bool = False, auth: Authenticator | None = None, service: Any = None, **settings: Any
) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started: list[Server] = []
        up = threading.Event()

        async def main() -> None:
            behind = service or MemoryService()
            app = create_app(behind, Keys() if keys else auth, ApiSettings(**settings))
            server = server_of(app)
            port = listener.getsockname()[1]
            loop = asyncio.get_running_loop()
            started.append(Server(url=f"http://127.0.0.1:{port}", service=behind, loop=loop))
            stops.append(server)
            up.set()
            await server.serve(sockets=[listener])

        stops: list[uvicorn.Server] = []
        thread = threading.Thread(target=lambda: asyncio.run(main()))
        thread.start()
        try:
            assert up.wait(20)
            yield started[0]
        finally:
            for server in stops:
                server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
