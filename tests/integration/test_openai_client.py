"""The stock ``openai`` client against our address."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.http import Server, serving
from x2l_cluster.errors import Overloaded


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(keys=True) as running:
        running.service.add("anna", "clip")
        running.service.add("anna", "talk")
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="key-a", max_retries=0) as made:
        yield made


def asks(text: str, *videos: str) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "video_url", "video_url": {"url": video}} for video in videos]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def test_a_whole_completion_with_its_usage(server: Server, client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "system", "content": "Be brief."},
            asks("Where are we?", "x2l://clip"),  # type: ignore[list-item]
            {"role": "assistant", "content": "At sea."},
            {"role": "user", "content": "Who speaks?"},
        ],
        max_completion_tokens=9,
        stop="END",
        extra_body={"detail": {"k": 2}},
    )
    assert done.choices[0].message.content == "You asked: Be brief.\n\nWho speaks?"
    assert done.choices[0].finish_reason == "stop"
    assert done.usage and (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (
        7,
        3,
        10,
    )
    ask = server.service.asked[-1]
    assert (ask.videos, ask.history) == (("clip",), (("Where are we?", "At sea."),))
    assert (ask.max_tokens, ask.stop, ask.detail.k, ask.synthesis) == (9, ("END",), 2, False)


def test_an_answer_is_streamed(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=[asks("Who speaks?", "clip")],  # type: ignore[list-item]
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    words = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert words == ["You", " asked:", " Who speaks?"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage and chunks[-1].usage.total_tokens == 10
    assert len({chunk.id for chunk in chunks}) == 1


def test_several_videos_are_answered_by_their_synthesis(server: Server, client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="tiny", messages=[asks("Who?", "clip", "talk", "clip")])  # type: ignore[list-item]
    assert server.service.asked[-1].videos == ("clip", "talk")
    assert server.service.asked[-1].synthesis
    assert done.choices[0].message.content == "You asked: Who?"
    assert done.usage and done.usage.total_tokens == 20


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "x2l"
    with pytest.raises(openai.NotFoundError, match="no model 'acme/other'"):
        client.models.retrieve("acme/other")


@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_those_of_the_client(server: Server, client: openai.OpenAI, stream: bool) -> None:
    def create(*messages: Any, model: str = "tiny") -> None:
        client.chat.completions.create(model=model, messages=messages, stream=stream)

    with pytest.raises(openai.NotFoundError) as unknown:
        create(asks("Who?", "gone"))
    assert (unknown.value.code, unknown.value.type) == ("unknown_video", "not_found_error")
    with pytest.raises(openai.NotFoundError):
        create(asks("Who?", "clip"), model="other")
    with pytest.raises(openai.BadRequestError, match="by its id"):
        create(asks("Who?"))
    with pytest.raises(openai.BadRequestError, match="index others first"):
        create(asks("Who?", "https://example.org/a.mp4"))
    with pytest.raises(openai.BadRequestError, match="empty"):
        create(asks(" ", "clip"))
    with pytest.raises(openai.BadRequestError, match="role is 'user'"):
        create({"role": "assistant", "content": "I say"})
    with pytest.raises(openai.BadRequestError):
        create({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]})
    server.service.failing = lambda: Overloaded("64 wait")
    try:
        with pytest.raises(openai.InternalServerError) as busy:
            create(asks("Who?", "clip"))
        assert busy.value.response.headers["retry-after"] == "1"
    finally:
        server.service.failing = lambda: None
    with (
        openai.OpenAI(base_url=client.base_url, api_key="nobody", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
