"""Parts by replicas, whatever becomes of the replica: every part ends, and a caller is told when to come back."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from x2l_cluster.cluster.answering import TAKEN
from x2l_cluster.cluster.parts import RayParts
from x2l_cluster.errors import AnswerLost, ModelMismatch, Overloaded
from x2l_cluster.messages import AnswerCompleted, AnswerDelta, AnswerFailed, Problem
from x2l_cluster.service import Ask

DELTA = AnswerDelta(part="p", text="a word")
END = AnswerCompleted(part="p", text="a word")


class Stream:
    """What a handle gives: items, then an error or an end."""

    def __init__(self, *items, error=None, silent=False):
        self._items, self._error, self._silent = list(items), error, silent
        self.cancelled = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self._items:
            return self._items.pop(0)
        if self._silent:
            await asyncio.Event().wait()
        raise self._error or StopAsyncIteration

    def cancel(self):
        if isinstance(self._error, BackPressureError):
            raise self._error  # as Ray's does
        self.cancelled = True


class Handle:
    def __init__(self, stream):
        self._stream = stream

    def options(self, **_):
        return self

    @property
    def about(self):
        return self

    closing = about

    def remote(self, *_, **__):
        return self._stream


def events(stream, **options):
    async def asked():
        begun = await RayParts(Handle(stream), **options).about("me", "p", "v", Ask(question="?", videos=("v",)), [])
        found = [event async for event in begun.events()]
        begun.cancel()
        return found

    return asyncio.run(asked())


def test_what_a_replica_tells_is_passed_on():
    stream = Stream(TAKEN, DELTA, END)
    assert events(stream) == [DELTA, END]
    assert not stream.cancelled


@pytest.mark.parametrize("told", [(), (TAKEN,), (TAKEN, DELTA)])
@pytest.mark.parametrize("error", [None, ActorDiedError()])
def test_a_stream_that_breaks_off_anywhere_ends_with_a_problem_to_try_again_on(told, error):
    *_, end = events(Stream(*told, error=error))
    assert isinstance(end, AnswerFailed)
    assert (end.problem.code, end.problem.retryable) == (AnswerLost.code, True)


def test_replicas_that_are_all_busy_turn_away_with_a_time():
    full = BackPressureError(num_queued_requests=1, max_queued_requests=1)
    for stream in (Stream(error=full), Stream(Problem.of(Overloaded("full", retry_after_s=2.0)))):
        with pytest.raises(Overloaded) as refused:
            events(stream)
        assert refused.value.retry_after_s


def test_a_question_that_nobody_takes_on_is_turned_away_and_taken_back():
    stream = Stream(silent=True)
    with pytest.raises(Overloaded):
        events(stream, taken_s=0.01)
    assert stream.cancelled


def test_who_leaves_early_stops_the_work():
    stream = Stream(TAKEN, silent=True)

    async def leave():
        begun = await RayParts(Handle(stream)).closing("me", "p", Ask(question="?", videos=("v",)), {"v": "x"})
        begun.cancel()

    asyncio.run(leave())
    assert stream.cancelled


def test_a_refusal_is_the_error_it_was():
    with pytest.raises(ModelMismatch):
        events(Stream(Problem.of(ModelMismatch("another model"))))
