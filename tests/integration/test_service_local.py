"""The service in one process: leaving early, slow callers, uploads that break."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.engines import files, mosaic
from tests.gates import watched
from tests.services import all_of, ends, indexed, local_service, run
from x2l_cluster.engine import Limits
from x2l_cluster.errors import Overloaded, SourceTooLarge
from x2l_cluster.messages import AnswerCompleted, AnswerCreated
from x2l_cluster.service import Ask
from x2l_cluster.service.local import LocalService

QUESTION = "What code is shown with the red star?"


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[LocalService]:
    film = mosaic(tmp_path_factory.mktemp("film") / "film.mp4", 12)
    with local_service(lm=watched(0), limits=Limits(waiting=3, planners=1)) as made:
        for video in ("v0", "v1"):
            run(indexed(made, "me", _other(film, video), video=video))
        yield made


def _other(film: Path, name: str) -> Path:
    """The same pictures as other content."""
    copy = film.parent / f"{name}.mp4"
    copy.write_bytes(film.read_bytes() + b"\0\0\0\x0cfree" + name.encode().ljust(4))
    return copy


@pytest.mark.parametrize("after", [AnswerCreated, AnswerCompleted])
def test_whoever_leaves_stops_all_that_was_begun(service, after):
    async def body() -> None:
        ask = Ask(question=QUESTION, videos=("v0", "v1"), max_tokens=1500, synthesis=True)
        short = Ask(question=QUESTION, videos=("v0", "gone"), max_tokens=2, synthesis=True)
        async with aclosing(service.answers("me", ask if after is AnswerCreated else short)) as events:
            async for event in events:
                if isinstance(event, after):
                    break
        end_s = time.monotonic() + 10.0
        while service.loop.live and time.monotonic() < end_s:
            await asyncio.sleep(0.01)  # a part that has just told its end is counted a moment longer
        assert service.loop.live == 0

    run(body())


def test_a_task_that_is_cancelled_while_it_asks_leaves_nothing_running(service):
    async def body() -> None:
        ask = Ask(question=QUESTION, videos=("v0", "v1"), max_tokens=1500)
        for steps in range(6):  # cancelled at different points of handing in
            asking = asyncio.create_task(all_of(service.answers("me", ask)))
            for _ in range(steps):
                await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        await asyncio.to_thread(lambda: None)
        while service.loop.live:  # what was being handed in just then is cancelled as soon as it is there
            await asyncio.sleep(0)

    run(body())


def test_of_a_question_over_many_videos_all_parts_are_taken_on_or_none(service):
    lm = service.engine.lm

    async def body() -> None:
        reached, held = threading.Event(), threading.Event()

        def before(steps: object) -> None:
            reached.set()
            assert held.wait(60)

        lm.before = before
        ask = Ask(question=QUESTION, videos=("v0",), max_tokens=2)
        asking = [asyncio.create_task(all_of(service.answers("me", ask)))]
        assert await asyncio.to_thread(reached.wait, 60)
        asking += [asyncio.create_task(all_of(service.answers("me", ask))) for _ in range(2)]
        while service.loop.waiting < 2:
            await asyncio.sleep(0)
        both = service.answers("me", Ask(question=QUESTION, videos=("v0", "v1"), max_tokens=2))
        with pytest.raises(Overloaded) as refused:
            await anext(both)
        assert refused.value.retry_after_s
        assert service.loop.waiting == 2
        held.set()
        answered = [end for events in await asyncio.gather(*asking) for end in ends(events).values()]
        assert [type(end) for end in answered] == [AnswerCompleted] * 3

    try:
        run(body())
    finally:
        lm.before = lambda steps: None


def test_many_slow_uploads_hold_nobody_up(service):
    async def body() -> None:
        go = asyncio.Event()

        async def slow():
            yield b"a piece"
            await go.wait()
            yield b"the rest"

        uploads = [asyncio.create_task(service.keep("me", slow(), name=str(n))) for n in range(40)]
        assert len(await service.videos("me")) == 2
        assert (await service.ready()).degraded == ()
        go.set()
        assert {ref.size_bytes for ref in await asyncio.gather(*uploads)} == {15}

    run(body())


def test_an_upload_that_is_cancelled_breaks_or_is_too_large_leaves_nothing(tmp_path):
    async def forever():
        while True:
            yield b"x" * 10_000
            await asyncio.sleep(0)

    async def silent():
        yield b"x"
        await asyncio.Event().wait()

    async def reset():
        yield b"x"
        raise ConnectionResetError("the other side is gone")

    async def body() -> None:
        with local_service(f"disk:{tmp_path}", lm=watched(0), max_source_bytes=1_000_000) as service:
            upload = asyncio.create_task(service.keep("me", silent()))
            while not files(tmp_path / "sources"):
                await asyncio.sleep(0)
            upload.cancel()
            with pytest.raises(asyncio.CancelledError):
                await upload
            with pytest.raises(SourceTooLarge):
                await service.keep("me", forever())
            with pytest.raises(ConnectionResetError):
                await service.keep("me", reset())
            assert files(tmp_path / "sources") == []

    run(body())
