"""Server-sent events as messages: what came, and whether that was all."""

from __future__ import annotations

from typing import Any, Final

from httpx_sse import ServerSentEvent
from pydantic import ValidationError

from x2l_cluster.client.call import value
from x2l_cluster.errors import ConnectionLost
from x2l_cluster.messages import (
    ANSWER_EVENTS,
    AnswerCompleted,
    AnswerCreated,
    AnswerEvent,
    AnswerFailed,
    JobEvent,
    Problem,
)

_END: Final = "stream.end"


class JobReader:
    """Reads the events of a job over as many connections as it takes; ``after`` is where the next one goes on."""

    def __init__(self, job: str, after: int) -> None:
        self.job, self.after, self.ended = job, after, False

    def read(self, sse: ServerSentEvent) -> JobEvent | None:
        """None for what is no news. Raises what the service failed with."""
        _raise_error(sse)
        self.ended = self.ended or sse.event == _END
        if not sse.event.startswith("job."):
            return None
        event: JobEvent = _value(JobEvent, sse)
        if event.number <= self.after:
            return None
        self.after = event.number
        return event

    @property
    def broken(self) -> ConnectionLost:
        return ConnectionLost(f"the events of job {self.job} broke off after number {self.after}; ask for them again")


class AnswerReader:
    """Reads the events of an answer."""

    def __init__(self) -> None:
        self._open: set[str] | None = None

    def read(self, sse: ServerSentEvent) -> AnswerEvent | None:
        """None for what a newer service tells. Raises what the service failed with."""
        _raise_error(sse)
        kind = ANSWER_EVENTS.get(sse.event)
        if kind is None:
            return None
        event: AnswerEvent = _value(kind, sse)
        if isinstance(event, AnswerCreated):
            self._open = {part.id for part in event.parts}
        elif isinstance(event, AnswerCompleted | AnswerFailed) and self._open:
            self._open.discard(event.part)
        return event

    def end(self) -> None:
        """Raises ConnectionLost when parts have not ended."""
        if self._open is None or self._open:
            raise ConnectionLost("the answer broke off; ask again")


def _raise_error(sse: ServerSentEvent) -> None:
    if sse.event == "error":
        problem: Problem = _value(Problem, sse)
        raise problem.error


def _value(kind: Any, sse: ServerSentEvent) -> Any:
    try:
        return value(kind, sse.data)
    except ValidationError as error:
        raise ConnectionLost(f"this is no {sse.event} event of our service: {error}") from error
