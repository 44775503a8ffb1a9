"""The answering loop: one batch over different questions and videos that people join and leave while it runs.

    submit ─▶ waiting ─▶ score, plan ─▶ planned ─▶ reload ─▶ ready ─▶ decode ─▶ answered
              (bounded)  (planners)               (loaders)          (one batch)

Planners and loaders are threads beside the one that decodes, so nobody's reload holds up anybody's text. The device
itself is taken in turns: between two steps of the batch at most one group of newcomers is encoded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from x2l_cluster import metrics
from x2l_cluster.engine.answer import Answerer
from x2l_cluster.engine.batch import Batch
from x2l_cluster.engine.decode import Generation
from x2l_cluster.engine.newcomers import Newcomers
from x2l_cluster.engine.question import Question, count
from x2l_cluster.engine.room import Room, free_bytes
from x2l_cluster.engine.ticket import Completed, Failed, Ticket
from x2l_cluster.engine.work import Asked, shared
from x2l_cluster.errors import AnswerLost, Overloaded

LOG: Final = logging.getLogger(__name__)
DEATHS: Final = 3
"""So many in a row, without a single token between them, and the loop gives itself up."""
GONE_S: Final = 2.0
"""What :meth:`AnswerLoop.close` gives its threads; one that hangs in a store ends with the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an answering loop takes on.

    Attributes:
        waiting: questions that wait for their turn; one more is Overloaded.
        batch: questions from their plan to their last token.
        group: questions about one video that share a forward when they are scored.
        planners, loaders: threads that score newcomers, and that reload fine blocks.
        device_bytes: what KVs of questions may take on the device; by default most of what is free.
    """

    waiting: int = 256
    batch: int = 32
    group: int = 8
    planners: int = 2
    loaders: int = 4
    device_bytes: int | None = None


class AnswerLoop:
    """Answers questions as they come. Every ticket ends: completed or failed, also when the loop breaks down or closes.

    An answer is the one :meth:`Answerer.answer` gives, whoever is in the batch beside it.

    Args:
        clock: seconds, for deadlines.
    """

    def __init__(
        self, answerer: Answerer, limits: Limits = Limits(), *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._answerer = answerer
        self._limits = limits
        self._clock = clock
        self._room = Room(answerer.lm, limits.device_bytes or free_bytes(answerer.lm.device))
        self._newcomers = Newcomers(answerer, self._room, clock)
        self._news = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._planned: deque[Question] = deque()
        self._ready: deque[Question] = deque()
        self._live: set[Ticket] = set()
        self._pace_s = 1.0
        self._deaths = 0
        self._closing = self._stopped = False
        loops = [self._decode, *[self._plan] * limits.planners, *[self._load] * limits.loaders]
        self._threads = [threading.Thread(target=loop, name=f"x2l{loop.__name__}", daemon=True) for loop in loops]
        for thread in self._threads:
            thread.start()

    # --- for who asks -----------------------------------------------------------------------------------------------

    def submit(self, asked: Asked, generation: Generation | None = None, *, deadline_s: float | None = None) -> Ticket:
        """Takes a question on. What is wrong with it later on fails its ticket.

        Args:
            deadline_s: seconds it may take. Its fetch is cut short for it: what is late is answered coarse, flagged.
                Without a token by then it fails with DeadlineExceeded; an answer that is being written ends there,
                with finish ``deadline``.

        Raises:
            Overloaded: too many wait, or the loop is closing.
            ExceedsDevice: not even its coarse level fits on the device.
            AnswerLost: the loop broke down for good.
        """
        generation = generation or Generation()
        self._room.needs(asked.manifest, tokens=generation.max_tokens)
        due = None if deadline_s is None else self._clock() + deadline_s
        ticket = Ticket(asked, generation, due=due, ended=self._ended)
        with self._news:
            if self._closing:
                raise Overloaded("the service is shutting down; ask again in a moment", retry_after_s=5.0)
            if not self.healthy:
                raise AnswerLost("answering broke down several times in a row and was given up; restart the service")
            if len(self._waiting) >= self._limits.waiting:
                raise Overloaded(
                    f"{len(self._waiting)} questions are waiting already; ask again later",
                    retry_after_s=self._retry_after_s(),
                )
            self._waiting.append(ticket)
            self._live.add(ticket)
            metrics.QUEUED.labels("answers").inc()
            self._news.notify_all()
        self._answerer.expect(asked.manifest)
        return ticket

    @property
    def healthy(self) -> bool:
        """Whether it does its work: it breaks down now and then and goes on, but not again and again."""
        return self._deaths < DEATHS

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def live(self) -> int:
        """Questions without an end yet."""
        return len(self._live)

    def close(self, drain_s: float = 10.0) -> None:
        """Takes nothing more on, gives what is there ``drain_s`` to end, and fails the rest. May be called twice."""
        with self._news:
            self._closing = True
            self._news.wait_for(lambda: not self._live, drain_s)
        for ticket in self._all():
            ticket.fail(Overloaded("the service shut down before this was answered; ask again", retry_after_s=5.0))
        with self._news:
            self._stopped = True
            self._news.notify_all()
        end = time.monotonic() + GONE_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _retry_after_s(self) -> float:
        """When about a quarter of the queue will have been answered, at the pace of late."""
        rounds = len(self._waiting) / 4 / self._limits.batch
        return min(60.0, max(1.0, rounds * self._pace_s))

    def _ended(self, ticket: Ticket, end: Completed | Failed) -> None:
        """Called once a ticket, by whoever ended it."""
        with self._news:
            self._live.discard(ticket)
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                metrics.QUEUED.labels("answers").dec()
            self._news.notify_all()
            if isinstance(end, Completed):
                took_s = time.perf_counter() - ticket.begun_s - end.answer.timings["queue_s"]
                self._pace_s += 0.2 * (took_s - self._pace_s)
        self._room.look()
        count(ticket, end)

    # --- newcomers --------------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        """A planner's life."""
        while group := self._group():
            planned = self._newcomers.plan(group)
            with self._news:
                self._planned.extend(planned)
                self._news.notify_all()

    def _group(self) -> list[Ticket]:
        """Those who wait longest, with others who can share their forward. Empty once the loop has stopped."""
        with self._news:
            self._news.wait_for(lambda: self._stopped or (self._waiting and self._free_places()))
            if self._stopped:
                return []
            like = shared(self._waiting[0].asked)
            most = min(self._limits.group, self._free_places())
            group = [ticket for ticket in self._waiting if shared(ticket.asked) == like][:most]
            for ticket in group:
                self._waiting.remove(ticket)
            metrics.QUEUED.labels("answers").dec(len(group))
            return group

    def _free_places(self) -> int:
        return self._limits.batch - (len(self._live) - len(self._waiting))

    def _load(self) -> None:
        """A loader's life."""
        while question := self._next():
            if self._newcomers.reload(question):
                with self._news:
                    self._ready.append(question)
                    self._news.notify_all()

    def _next(self) -> Question | None:
        with self._news:
            self._news.wait_for(lambda: self._stopped or self._planned)
            return None if self._stopped else self._planned.popleft()

    # --- the batch --------------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        """The life of the batch, and its next one when it dies. Ends when the loop has stopped or given itself up."""
        while not self._stopped and self.healthy:
            batch = Batch(self._answerer, self._room)
            try:
                self._live_on(batch)
            except BaseException as error:
                LOG.exception("the batch of answers died")
                with self._news:
                    self._deaths += 1
                lost = [question.ticket for question in batch.questions] if self.healthy else self._all()
                for ticket in lost:
                    ticket.fail(AnswerLost(f"answering broke down ({type(error).__name__}); ask again"))
            finally:
                batch.abandon()

    def _live_on(self, batch: Batch) -> None:
        while True:
            with self._news:
                if not (self._stopped or self._ready or batch):
                    self._news.wait(self._until_due_s())
                if self._stopped:
                    return
                joining = list(self._ready)
                self._ready.clear()
            for question in joining:
                batch.join(question)
            self._expire()
            if batch.step(self._clock()):
                self._deaths = 0

    def _until_due_s(self) -> float | None:
        dues = [ticket.due for ticket in self._live if ticket.due is not None]
        return max(0.0, min(dues) - self._clock()) if dues else None

    def _expire(self) -> None:
        """Whoever is late without a word fails, wherever it is."""
        now = self._clock()
        for ticket in self._all():
            if ticket.due is not None and now >= ticket.due and ticket.first_s is None:
                ticket.fail_late()

    def _all(self) -> list[Ticket]:
        with self._news:
            return list(self._live)
