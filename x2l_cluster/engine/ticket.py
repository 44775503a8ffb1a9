"""What a question that was handed in is followed by: its events, for threads and for asyncio alike.

In this order: one ``Planned``, any number of ``Delta``, one ``Evidenced``, one ``Completed``; a ``Failed`` may come at
any point instead of the rest, and is the last. The deltas joined are the text of the answer, to the character.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from x2l_cluster.engine.decode import Generation
from x2l_cluster.engine.work import Asked
from x2l_cluster.errors import Cancelled, DeadlineExceeded, X2LError
from x2l_cluster.types import Answer, Evidence, ReloadPlan, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What will be reloaded fine, known before the first token. ``covered`` is the indexed part of the video."""

    plan: ReloadPlan
    covered: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """More of the text; never empty, never half a character, nothing from a stop text on."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidenced:
    """What the answer was given fine detail of; as in the answer."""

    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """The end: the answer, whole. Its ``finish`` is ``deadline`` when time ran out while it was being written."""

    answer: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The end: no answer."""

    error: X2LError


Event = Planned | Delta | Evidenced | Completed | Failed


class Ticket:
    """A question handed in. Events are kept, so whoever looks late sees them from the first on.

    To leave before the end is to cancel: leaving an iteration over the events, or the ``with`` block. Safe for several
    threads and event loops.

    Attributes:
        begun_s: when it was handed in, by ``time.perf_counter``; ``first_s`` is when its first token came.
        due: its deadline, by the clock of who answers; None for none.
    """

    def __init__(
        self,
        asked: Asked,
        generation: Generation,
        *,
        due: float | None = None,
        ended: Callable[[Ticket, Completed | Failed], None] = lambda *_: None,
    ) -> None:
        self.asked = asked
        self.generation = generation
        self.due = due
        self.begun_s = time.perf_counter()
        self.first_s: float | None = None
        self._ended = ended
        self._events: list[Event] = []
        self._news = threading.Condition()
        self._watchers: list[Callable[[], None]] = []

    # --- for who asked ----------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        return bool(self._events) and isinstance(self._events[-1], Completed | Failed)

    def cancel(self) -> None:
        """Ends it now, as ``Failed`` with Cancelled, unless it had ended before; the work stops a step later."""
        if not self.done:
            self.fail(Cancelled(f"the question about video {self.asked.manifest.video} was cancelled; ask it again"))

    def result(self, timeout_s: float | None = None) -> Answer:
        """Waits for the answer. Raises what it failed with, or TimeoutError if it is not there in time (it goes on)."""
        with self._news:
            if not self._news.wait_for(lambda: self.done, timeout_s):
                raise TimeoutError(f"no answer within {timeout_s} s; wait longer, or cancel it")
        return self._end()

    async def answer(self) -> Answer:
        """As :meth:`result`, for asyncio. A task that is cancelled while it waits cancels the question."""
        async with aclosing(self.__aiter__()) as events:
            async for _ in events:
                pass
        return self._end()

    def follow(self) -> Iterator[Event]:
        """The events, waiting for each. Others may follow too, and to leave changes nothing."""
        seen = 0
        while True:
            with self._news:
                self._news.wait_for(lambda: len(self._events) > seen)  # noqa: B023 (called before it changes)
            event = self._events[seen]
            seen += 1
            yield event
            if isinstance(event, Completed | Failed):
                return

    def __iter__(self) -> Iterator[Event]:
        """The events, waiting for each."""
        try:
            yield from self.follow()
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncGenerator[Event]:
        """The events, waiting for each without holding up the event loop. To leave early, close it (``aclosing``)."""
        loop, fresh, seen = asyncio.get_running_loop(), asyncio.Event(), 0

        def wake() -> None:
            with suppress(RuntimeError):  # the loop of a consumer that went away is closed
                loop.call_soon_threadsafe(fresh.set)

        try:
            with self._watched(wake):
                while True:
                    fresh.clear()
                    while seen < len(self._events):
                        event = self._events[seen]
                        seen += 1
                        yield event
                        if isinstance(event, Completed | Failed):
                            return
                    await fresh.wait()
        finally:
            self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def _end(self) -> Answer:
        end = self._events[-1]
        if isinstance(end, Failed):
            raise end.error
        assert isinstance(end, Completed)
        return end.answer

    @contextmanager
    def _watched(self, wake: Callable[[], None]) -> Iterator[None]:
        with self._news:
            self._watchers.append(wake)
        try:
            yield
        finally:
            with self._news:
                self._watchers.remove(wake)

    # --- for who answers --------------------------------------------------------------------------------------------

    def push(self, event: Event) -> bool:
        """Adds an event; False when the end had come already, and the event is dropped."""
        with self._news:
            if self.done:
                return False
            self._events.append(event)
            self._news.notify_all()
            watchers = list(self._watchers)
        for wake in watchers:
            wake()
        if isinstance(event, Completed | Failed):
            self._ended(self, event)
        return True

    def fail(self, error: X2LError) -> bool:
        return self.push(Failed(error=error))

    def fail_late(self) -> bool:
        video = self.asked.manifest.video
        return self.fail(DeadlineExceeded(f"video {video}: no time was left before the first word; allow more"))
