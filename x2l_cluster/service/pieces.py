"""An upload that arrives piece by piece on an event loop, as the stream a source store reads in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor, Future
from functools import partial

from x2l_cluster.errors import Cancelled, SourceTooLarge, X2LError
from x2l_cluster.types import SourceRef
from x2l_cluster.video import SourceStore


async def keep(
    sources: SourceStore,
    tenant: str,
    pieces: AsyncIterator[bytes],
    *,
    name: str | None,
    max_bytes: int,
    threads: Executor | None = None,
) -> SourceRef:
    """Keeps an upload; a piece is asked for when the last one is written. An error of ``pieces`` is raised here.

    Args:
        threads: where it is written; one thread is taken for as long as the upload lasts.

    Raises EmptyVideo, SourceTooLarge, StoreUnavailable; nothing is left then.
    """
    loop = asyncio.get_running_loop()
    body = _Body(pieces, loop, max_bytes)
    writing = loop.run_in_executor(threads, partial(sources.put, tenant, body, name=name))  # type: ignore[arg-type]
    try:
        return await asyncio.shield(writing)
    except asyncio.CancelledError:
        body.stop()
        await asyncio.gather(writing, return_exceptions=True)
        raise
    except X2LError:
        if body.error is not None:  # the store may have taken it for an error of its own
            raise body.error from None
        raise


class _Body:
    def __init__(self, pieces: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop, max_bytes: int) -> None:
        self._pieces, self._loop, self._max_bytes = pieces, loop, max_bytes
        self._size = 0
        self._stopped = False
        self._asked: Future[bytes] | None = None
        self.error: Exception | None = None

    def read(self, _: int = -1) -> bytes:
        """The next piece, of any size; empty at the end."""
        try:
            self._asked = asyncio.run_coroutine_threadsafe(self._next(), self._loop)
            piece = self._asked.result()
            self._size += len(piece)
            if self._size > self._max_bytes:
                raise SourceTooLarge(f"the upload has more than {self._max_bytes} bytes, the most that are taken")
        except Exception as error:
            self.error = error
            raise
        return piece

    def stop(self) -> None:
        """Called on the loop: what is asked for now or later does not come."""
        self._stopped = True
        if self._asked is not None:
            self._asked.cancel()

    async def _next(self) -> bytes:
        if self._stopped:
            raise Cancelled("the upload was given up")
        async for piece in self._pieces:
            if piece:
                return piece
        return b""
