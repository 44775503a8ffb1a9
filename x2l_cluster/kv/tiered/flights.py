"""One fetch of a block, however many threads of the process want it; those who cannot wait leave, the fetch goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from threading import Lock

from x2l_cluster.errors import StoreLate, StoreUnavailable
from x2l_cluster.kv.store import Fetched, Want
from x2l_cluster.kv.tiered.fence import Fence, Token
from x2l_cluster.metrics import KV_FAN_IN, KV_STRAGGLERS, kind_of
from x2l_cluster.types import BlockKey


class Flight:
    """One fetch on its way. ``lands``: somebody for whom it is to be kept near wants it."""

    __slots__ = ("future", "is_stray", "lands", "readers", "token")

    def __init__(self, token: Token, *, lands: bool) -> None:
        self.token, self.lands = token, lands
        self.readers = 0
        self.is_stray = False
        self.future: Future[Fetched]


class Flights:
    """Fetches in the air.

    Args:
        bring: fetches one block; gets the flight and what the first reader wants.
        threads: fetches at once; more wait.
    """

    def __init__(self, bring: Callable[[Flight, Want], Fetched], fence: Fence, *, threads: int) -> None:
        self._bring, self._fence = bring, fence
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="x2l-fetch")
        self._air: dict[BlockKey, Flight] = {}
        self._lock = Lock()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._air)

    def fetch(self, key: BlockKey, want: Want, *, lands: bool, reads: bool = True) -> Fetched:
        """What the one fetch of this block brings, or its error.

        Args:
            lands: keep it near.
            reads: False for a hint, which counts as no reader.

        Raises:
            StoreLate: it did not come within ``want.within_s``; it goes on without this reader.
        """
        with self._lock:
            flight = self._air.get(key)
            if flight is None or flight.token.void:  # void: what it brings may be older than this call
                flight = self._start(key, want, lands)
            flight.lands |= lands
            flight.readers += reads
        try:
            return flight.future.result(want.within_s)
        except CancelledError:
            raise StoreUnavailable(f"block {key} was not fetched: the store was closed") from None
        except TimeoutError:
            if flight.future.done():
                return flight.future.result()
            self._left(flight)
            raise StoreLate(
                f"block {key} did not come within {want.within_s} s: answer coarse; it is still on its way, for the "
                "next question"
            ) from None

    def close(self) -> None:
        """Cancels what has not begun, and waits for what is in the air."""
        with self._lock:
            self._is_closed = True
        self._pool.shutdown(cancel_futures=True)

    def _start(self, key: BlockKey, want: Want, lands: bool) -> Flight:
        if self._is_closed:
            raise StoreUnavailable(f"block {key} is not fetched: the store was closed")
        flight = self._air[key] = Flight(self._fence.begin(key), lands=lands)
        flight.future = self._pool.submit(self._run, flight, want)
        flight.future.add_done_callback(lambda _: self._ended(flight))
        return flight

    def _run(self, flight: Flight, want: Want) -> Fetched:
        try:
            return self._bring(flight, want)
        finally:
            with self._lock:  # before the result is out: who comes now looks near first
                if self._air.get(flight.token.key) is flight:
                    del self._air[flight.token.key]

    def _left(self, flight: Flight) -> None:
        with self._lock:
            first, flight.is_stray = not flight.is_stray, True
        if first:
            flight.future.add_done_callback(_count_straggler(flight.token.key))

    def _ended(self, flight: Flight) -> None:
        self._fence.end(flight.token)
        if flight.readers:
            KV_FAN_IN.labels(kind_of(flight.token.key.kind)).observe(flight.readers)


def _count_straggler(key: BlockKey) -> Callable[[Future[Fetched]], None]:
    def count(future: Future[Fetched]) -> None:
        if not future.cancelled() and future.exception() is None:
            KV_STRAGGLERS.labels(kind_of(key.kind)).inc()

    return count
