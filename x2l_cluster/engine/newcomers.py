"""From a question that waits to one that can join the batch: scored, planned, its fine blocks reloaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from x2l_cluster.engine.answer import Answerer
from x2l_cluster.engine.question import Question, answering
from x2l_cluster.engine.room import Room
from x2l_cluster.engine.ticket import Planned, Ticket
from x2l_cluster.engine.work import Work
from x2l_cluster.engine.writer import Writer

FETCH_SHARE: Final = 0.5
"""Of the time that is left to a question, its fetch may take this much, the rest is for writing: a coarse answer in
time, flagged, is worth more than none."""


class Newcomers:
    """Readies questions. Safe for several threads; whatever goes wrong with a question fails its ticket only.

    Args:
        clock: that of the tickets' deadlines.
    """

    def __init__(self, answerer: Answerer, room: Room, clock: Callable[[], float]) -> None:
        self._answerer, self._room, self._clock = answerer, room, clock

    def plan(self, group: Sequence[Ticket]) -> list[Question]:
        """Scores and plans questions that can share a forward, and tells each its plan. Those that fail are left out.

        As many share one as fit on the device.
        """
        planned: list[Question] = []
        with answering(group):
            size = self._room.needs(group[0].asked.manifest)
            fitting = self._room.fitting(size, len(group))
            for place in range(0, len(group), fitting):
                planned += self._plan(group[place : place + fitting], size)
        return planned

    def _plan(self, tickets: Sequence[Ticket], size: int) -> list[Question]:
        tickets = [ticket for ticket in tickets if not ticket.done]
        begun = time.perf_counter()
        work: list[Work] = []
        with answering(tickets if len(tickets) == 1 else ()):
            if not self._room.take(size * len(tickets), lambda: any(not ticket.done for ticket in tickets)):
                return []
            try:
                work = self._answerer.planned([t.asked for t in tickets], [t.generation.max_tokens for t in tickets])
            finally:
                self._room.give(size * len(tickets))
        if not work and len(tickets) > 1:  # one of them is at fault: each by itself
            return [question for ticket in tickets for question in self._plan([ticket], size)]
        planned = []
        for ticket, item in zip(tickets, work, strict=bool(work)):
            item.timings["queue_s"] = begun - ticket.begun_s
            ticket.push(Planned(plan=item.plan, covered=item.asked.manifest.span))
            writer = Writer(self._answerer.lm.text, ticket.generation.stop)
            planned.append(Question(ticket=ticket, work=item, writer=writer))
        return planned

    def reload(self, question: Question) -> bool:
        """Takes room on the device and fetches the planned L blocks. False when it has ended meanwhile, or failed."""
        ticket, work = question.ticket, question.work
        tokens = len(work.prompt.suffix) + ticket.generation.max_tokens
        with answering([ticket]):
            size = self._room.needs(work.asked.manifest, work.plan.fine, tokens)
            if self._room.take(size, lambda: not ticket.done):
                question.held_bytes = size
                left_s = None if ticket.due is None else max(0.0, ticket.due - self._clock())
                self._answerer.reload(work, most_s=None if left_s is None else FETCH_SHARE * left_s)
                return True
        self._room.give(question.held_bytes)
        return False
