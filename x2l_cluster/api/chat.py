"""OpenAI's chat messages as one of our questions, and our answers as its completions."""

from __future__ import annotations

import re
import time
from itertools import pairwise
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from x2l_cluster.api.bodies import Amount, DetailWord, Whole, Word, detail_of
from x2l_cluster.errors import InvalidInput, InvalidQuestion
from x2l_cluster.messages import AnswerCompleted, AnswerEvent
from x2l_cluster.service.requests import MAX_TOKENS, Ask
from x2l_cluster.types import Usage

_VIDEO: Final = re.compile(r"(?:x2l:(?://)?(?:videos?/)?)?([A-Za-z0-9][A-Za-z0-9._-]{0,127})")


class _Loose(BaseModel):
    """Clients of OpenAI send many fields that mean nothing here."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class VideoUrl(_Loose):
    url: Word = Field(description="an indexed video: its id, or x2l://ID")


class TextPart(_Loose):
    type: Literal["text"]
    text: str


class VideoPart(_Loose):
    type: Literal["video_url"]
    video_url: VideoUrl


Parts = list[Annotated[TextPart | VideoPart, Field(discriminator="type")]]


class Message(_Loose):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Parts | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or () if isinstance(part, TextPart))

    @property
    def videos(self) -> list[str]:
        """Raises InvalidInput for a URL that is no id."""
        if not isinstance(self.content, list):
            return []
        return [_named(part.video_url.url) for part in self.content if isinstance(part, VideoPart)]


class StreamOptions(_Loose):
    include_usage: bool = False


class ChatBody(_Loose):
    """A conversation whose last message is the question. ``detail`` is ours: how much fine detail to reload."""

    model: Word
    messages: list[Message] = Field(min_length=1, max_length=200)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: Whole | None = None
    stop: str | list[str] | None = None
    n: Literal[1] | None = None
    detail: DetailWord | Amount = "auto"

    def ask(self) -> Ask:
        """One question: system messages stand before it, earlier turns are its history, every named video is asked.

        Raises InvalidInput, InvalidQuestion.
        """
        rules = [m.text for m in self.messages if m.role in ("system", "developer")]
        turns = [m for m in self.messages if m.role in ("user", "assistant")]
        if not turns or turns[-1].role != "user":
            raise InvalidQuestion("the last message asks: its role is 'user'")
        videos = tuple(dict.fromkeys(video for message in turns for video in message.videos))
        if not videos:
            raise InvalidInput("name an indexed video in a part of type 'video_url', by its id")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        return Ask(
            question="\n\n".join([*rules, turns[-1].text] if turns[-1].text.strip() else []),
            videos=videos,
            history=tuple((q.text, a.text) for q, a in pairwise(turns) if _is_turn(q, a)),
            detail=detail_of(self.detail),
            max_tokens=self.max_completion_tokens or self.max_tokens or 64,
            stop=tuple(stop or ()),
            temperature=self.temperature or 0.0,
            top_p=self.top_p or 1.0,
            seed=self.seed or 0,
            synthesis=len(videos) > 1,
        )


def _is_turn(question: Message, answer: Message) -> bool:
    return question.role == "user" and answer.role == "assistant"


def _named(url: str) -> str:
    match = _VIDEO.fullmatch(url)
    if match is None:
        raise InvalidInput("video_url names an indexed video by its id; index others first, with POST /v1/videos")
    return match[1]


class Completion:
    """What one conversation is answered with."""

    def __init__(self, id: str, model: str) -> None:
        self._head = {"id": f"chatcmpl-{id}", "created": int(time.time()), "model": model}

    def whole(self, end: AnswerCompleted, events: list[AnswerEvent]) -> dict[str, Any]:
        message = {"role": "assistant", "content": end.text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": _finish(end), "logprobs": None}
        return self._head | {"object": "chat.completion", "choices": [choice], "usage": usage(events)}

    def chunk(self, delta: dict[str, str], finish: AnswerCompleted | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish and _finish(finish), "logprobs": None}
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]}

    def usage(self, events: list[AnswerEvent]) -> dict[str, Any]:
        """The last chunk, for those who ask for it."""
        return self._head | {"object": "chat.completion.chunk", "choices": [], "usage": usage(events)}


def _finish(end: AnswerCompleted) -> str:
    return "stop" if end.finish == "stop" else "length"


def usage(events: list[AnswerEvent]) -> dict[str, int]:
    """Tokens of all parts that count theirs."""
    costs: list[Usage] = [e.answer.usage for e in events if isinstance(e, AnswerCompleted) and e.answer]
    prompt, completion = sum(c.prompt_tokens for c in costs), sum(c.answer_tokens for c in costs)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
