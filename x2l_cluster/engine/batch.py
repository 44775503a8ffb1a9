"""The batch that is being decoded: questions join it, get a token a step, tell it, and leave."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Final

from x2l_cluster import metrics
from x2l_cluster.engine.answer import Answerer
from x2l_cluster.engine.decode import Decoder, Stream
from x2l_cluster.engine.question import Question, answering
from x2l_cluster.engine.room import Room
from x2l_cluster.engine.ticket import Completed, Delta, Evidenced

LOG: Final = logging.getLogger(__name__)


class Batch:
    """Questions over one decoder. Driven by one thread."""

    def __init__(self, answerer: Answerer, room: Room) -> None:
        self._answerer, self._room = answerer, room
        self._decoder = Decoder(answerer.lm)
        self._running: dict[Stream, Question] = {}

    def __len__(self) -> int:
        return len(self._running)

    @property
    def questions(self) -> list[Question]:
        return list(self._running.values())

    def join(self, question: Question) -> None:
        """From now on it gets tokens; unless it cannot be joined, then its ticket fails."""
        with answering([question.ticket]):
            self._answerer.join(question.work, self._decoder, question.ticket.generation)
        if question.work.stream is None:
            self._room.give(question.held_bytes)
        else:
            if not self._running:
                self._answerer.turns.stay()
            self._running[question.work.stream] = question

    def step(self, now: float) -> int:
        """A token for everybody whose time is not over; returns how many got one. Those who are done leave."""
        self._expire(now)
        if not self._running:
            return 0
        with self._answerer.turns:
            begun = time.perf_counter()
            try:
                written = self._decoder.step()
            except Exception:
                LOG.exception("a step of %d answers failed; each takes it alone", len(self))
                written = list(self._each())
            share = (time.perf_counter() - begun) / len(self)
        metrics.DECODE_BATCH.observe(len(self))
        for stream in written:
            question = self._running[stream]
            with answering([question.ticket]):
                self._tell(question, stream, share)
        self._leave()
        return len(written)

    def abandon(self) -> None:
        """Lets go of all of them."""
        while self._running:
            self._drop(next(iter(self._running)))

    def _drop(self, stream: Stream) -> Question:
        question = self._running.pop(stream)
        self._room.give(question.held_bytes)
        if not self._running:
            self._answerer.turns.go()
        return question

    def _expire(self, now: float) -> None:
        for stream, question in self._running.items():
            due = question.ticket.due
            if due is not None and now >= due:
                if question.ticket.first_s is None:
                    question.ticket.fail_late()
                stream.cancel("deadline")
        self._leave()

    def _each(self) -> Iterator[Stream]:
        """The step of a batch that failed, one by one: who is at fault fails, the others go on."""
        for stream, question in self._running.items():
            with answering([question.ticket]):
                yield from self._decoder.step(stream)

    def _tell(self, question: Question, stream: Stream, seconds: float) -> None:
        ticket, timings = question.ticket, question.work.timings
        timings["decode_s"] = timings.get("decode_s", 0.0) + seconds
        now = time.perf_counter()
        if question.token_s is None:
            ticket.first_s = now
            timings["ttft_s"] = now - ticket.begun_s
            metrics.TTFT_S.observe(timings["ttft_s"])
        else:
            metrics.INTER_TOKEN_S.observe(now - question.token_s)
        question.token_s = now
        if stream.finish is None and (text := question.writer.more(stream.ids)):
            ticket.push(Delta(text=text))

    def _leave(self) -> None:
        """Those who are done, one way or the other, leave the batch."""
        for stream, question in list(self._running.items()):
            if stream.finish is not None or question.ticket.done:
                stream.cancel()
                self._drop(stream)
                if not question.ticket.done:
                    with answering([question.ticket]):
                        self._complete(question)

    def _complete(self, question: Question) -> None:
        answer = self._answerer.finished(question.work)
        if text := question.writer.end(answer.text):
            question.ticket.push(Delta(text=text))
        question.ticket.push(Evidenced(evidence=answer.evidence))
        question.ticket.push(Completed(answer=answer))
