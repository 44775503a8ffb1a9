"""Decoding: a batch of different questions over different videos, joined and left at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from x2l_cluster.errors import InvalidInput, PromptTooLong
from x2l_cluster.models.base import Step, Tokens, VideoLM
from x2l_cluster.models.rows import Shelves
from x2l_cluster.models.view import View

GREEDY = 1e-5
"""Temperatures up to this one are greedy: dividing by them would overflow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How an answer is written. A temperature of (nearly) 0 is greedy; otherwise nucleus sampling with a seed."""

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_stop_ids: bool = False
    """Write on until ``max_tokens`` (load tests)."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InvalidInput(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not all(self.stop):
            raise InvalidInput("a stop text must not be empty; leave it out")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise InvalidInput(
                f"temperature must not be negative and top_p in (0, 1], got {self.temperature} and {self.top_p}"
            )


@dataclass(slots=True, eq=False)
class Stream:
    """One answer being written. ``finish`` is None while it is; then ``stop``, ``length``, or why it was cancelled."""

    view: View
    pending: Tokens
    generation: Generation
    words: Callable[[Sequence[int]], str]
    ids: list[int] = field(default_factory=list)
    finish: str | None = None
    _random: torch.Generator | None = None

    @property
    def text(self) -> str:
        """What is written so far, up to a stop text."""
        text = self.words(self.ids)
        ends = [text.index(stop) for stop in self.generation.stop if stop in text]
        return text[: min(ends)] if ends else text

    def cancel(self, finish: str = "cancelled") -> None:
        """Takes effect before the next token."""
        self.finish = self.finish or finish


class Decoder:
    """A continuous batch over one model. Join whenever; each :meth:`step` gives every stream its next token.

    One thread drives a decoder; different decoders over one model may run in different threads.
    """

    def __init__(self, lm: VideoLM) -> None:
        self._lm = lm
        self._streams: list[Stream] = []
        self._shelves = Shelves()

    @property
    def size(self) -> int:
        return len(self._streams)

    def join(self, view: View, question: Tokens, generation: Generation) -> Stream:
        """Starts an answer; ``view`` belongs to the stream from now on.

        Raises PromptTooLong when question and answer would leave the positions the model was trained for.
        """
        check_room(self._lm, question.end, generation.max_tokens)
        stream = Stream(view=view, pending=question, generation=generation, words=self._lm.text)
        if generation.temperature > GREEDY:
            stream._random = torch.Generator(device="cpu").manual_seed(generation.seed)
        view.join(self._shelves)
        self._streams.append(stream)
        return stream

    def step(self, only: Stream | None = None) -> list[Stream]:
        """One token for every stream, or for one; returns those that got one. Streams that finish leave the batch.

        When it raises, no stream has got a token, and it can be called again.
        """
        self._part()
        batch = [stream for stream in self._streams if only in (None, stream)]
        if not batch:
            return []
        batch.sort(key=lambda stream: stream.view.place)
        trace = self._lm.forward([Step(tokens=stream.pending, view=stream.view) for stream in batch])
        logits = self._lm.logits(torch.stack([hidden[-1] for hidden in trace.hidden]))
        for stream, chosen in zip(batch, self._choose(batch, logits), strict=True):
            stream.view.advance(len(stream.pending))
            self._take(stream, chosen)
        going = [stream for stream in batch if stream.finish is None]
        if going:
            following = self._lm.embed_next([s.ids[-1] for s in going], [s.pending.end for s in going])
            for stream, tokens in zip(going, following, strict=True):
                stream.pending = tokens
        self._part()
        return batch

    def run(self) -> Iterator[Stream]:
        """Steps until the batch is empty, yielding every stream that got a token."""
        while self._streams:
            yield from self.step()

    def _part(self) -> None:
        """Streams that have finished leave."""
        for stream in self._streams:
            if stream.finish is not None:
                stream.view.leave()
        self._streams = [stream for stream in self._streams if stream.finish is None]

    def _choose(self, batch: list[Stream], logits: Tensor) -> list[int]:
        chosen: list[int] = logits.argmax(-1).tolist()
        for index, stream in enumerate(batch):
            if stream._random is not None:
                chosen[index] = _sample(logits[index].cpu(), stream.generation, stream._random)
        return chosen

    def _take(self, stream: Stream, token: int) -> None:
        generation = stream.generation
        if token in self._lm.stop_ids and not generation.ignore_stop_ids:
            stream.finish = "stop"
            return
        stream.ids.append(token)
        if generation.stop and any(stop in self._lm.text(stream.ids) for stop in generation.stop):
            stream.finish = "stop"
            return
        if len(stream.ids) >= generation.max_tokens:
            stream.finish = "length"


def check_room(lm: VideoLM, position: float, max_tokens: int) -> None:
    """Raises PromptTooLong when an answer begun at ``position`` could leave the positions the model was trained for."""
    if position + max_tokens > lm.spec.max_position:
        raise PromptTooLong(
            f"question and answer would reach position {position + max_tokens:.0f} of {lm.spec.max_position}: ask "
            "shorter or lower max_tokens; a video too long for the model needs an index with positions 'scaled'"
        )


def _sample(logits: Tensor, generation: Generation, random: torch.Generator) -> int:
    """Nucleus sampling from logits (vocabulary,) on the CPU."""
    probabilities, order = (logits / generation.temperature).softmax(-1).sort(descending=True)
    outside = probabilities.cumsum(-1) - probabilities >= generation.top_p
    probabilities = probabilities.masked_fill(outside, 0.0)
    return int(order[torch.multinomial(probabilities, 1, generator=random)])
