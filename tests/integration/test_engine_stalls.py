"""A server that stands still while questions are answered: they wait no longer than the deadline, and say so."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from time import monotonic

import pytest

from tests.engines import SMALL, mosaic
from tests.tiny import qwen3_vl
from x2l_cluster.engine import Generation, Stores, VideoEngine
from x2l_cluster.kv.embedded import EmbeddedValkey
from x2l_cluster.kv.memory import MemoryKV
from x2l_cluster.kv.remote import RemoteKV
from x2l_cluster.kv.routed import RoutedKV
from x2l_cluster.types import Answer, Kind

QUESTION = "What code is shown with the red star?"
WRITE = Generation(max_tokens=6, ignore_stop_ids=True)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mosaic(tmp_path_factory.mktemp("film") / "film.mp4", 15)


@pytest.fixture
def server() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(maxmemory_bytes=64 << 20) as server:
        yield server


class Asker(Thread):
    """Asks until told to stop, with nothing fine hot; keeps every answer and how long it took."""

    def __init__(self, x2l: VideoEngine, video: str) -> None:
        super().__init__(daemon=True)
        self._x2l, self._video = x2l, video
        self.stop = Event()
        self.answers: list[tuple[float, Answer]] = []

    def run(self) -> None:
        while not self.stop.is_set():
            begun = monotonic()
            answer = self._x2l.ask(self._video, QUESTION, detail="k=2", generation=WRITE)
            self.answers.append((monotonic() - begun, answer))
            self._x2l.answerer.forget("local", self._video)


def stall(server: EmbeddedValkey, film: Path, *, stall_s: float, deadline_s: float, askers: int) -> None:
    stores = Stores.open("memory:")
    kv = RoutedKV({Kind.L: RemoteKV(server.url, timeout_s=deadline_s)}, MemoryKV())
    with kv, VideoEngine(qwen3_vl(0), replace(stores, kv=kv)) as x2l:
        video = x2l.index(film, **SMALL).video
        expected = x2l.ask(video, QUESTION, detail="k=2", generation=WRITE)
        coarse = x2l.ask(video, QUESTION, detail="coarse", generation=WRITE)
        x2l.answerer.forget("local", video)
        threads = [Asker(x2l, video) for _ in range(askers)]
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for thread in threads:
                thread.start()
            Event().wait(stall_s)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        until = monotonic() + 60
        while not all(thread.answers and not thread.answers[-1][1].degraded for thread in threads):
            assert monotonic() < until, "service does not resume by itself"
            Event().wait(0.05)
        for thread in threads:
            thread.stop.set()
        for thread in threads:
            thread.join(60)
    answers = [answer for thread in threads for answer in thread.answers]
    flagged = [answer for _, answer in answers if answer.degraded]
    assert len(flagged) >= askers
    assert any(item.degraded == "late" for answer in flagged for item in answer.evidence)
    for took_s, answer in answers:
        assert took_s < deadline_s + 3  # the machine may be busy
        if not answer.degraded:
            assert answer.text == expected.text
        elif all(item.degraded for item in answer.evidence):
            assert {item.degraded for item in answer.evidence} <= {"late", "unavailable"}
            assert answer.text == coarse.text


def test_a_stalled_server_delays_answers_by_the_deadline_and_they_are_flagged(
    server: EmbeddedValkey, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("x2l_cluster.engine.read.BASE_S", 0.3)
    stall(server, film, stall_s=1.5, deadline_s=0.3, askers=2)


@pytest.mark.soak
def test_a_server_stalled_for_twenty_seconds_delays_answers_by_the_deadline(server: EmbeddedValkey, film: Path) -> None:
    stall(server, film, stall_s=20, deadline_s=5.0, askers=4)
