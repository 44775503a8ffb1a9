"""Indexing and answering on one device: they take turns, and neither waits for more than one turn of the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.engines import SMALL, engine, mosaic
from tests.gates import WAIT_S
from tests.tiny import Qwen3VL, byte_tokenizer, qwen3_vl_model
from x2l_cluster.engine import AnswerLoop, Delta, Generation
from x2l_cluster.models import Step, Tokens, Trace

LONG = Generation(max_tokens=3500, ignore_stop_ids=True)


class Device(Qwen3VL):
    """A tiny model that writes down who uses it, and whether two ever do at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.used: list[tuple[str, str]] = []
        self.clashes = 0
        self._busy = threading.Lock()

    @contextmanager
    def _use(self, what: str) -> Iterator[None]:
        alone = self._busy.acquire(blocking=False)
        self.clashes += not alone
        self.used.append((threading.current_thread().name, what))
        try:
            yield
        finally:
            if alone:
                self._busy.release()

    def forward(self, steps: Sequence[Step], **options: Any) -> Trace:
        with self._use("forward"):
            return super().forward(steps, **options)

    def embed_chunk(self, *args: Any) -> Tokens:
        with self._use("frames"):
            return super().embed_chunk(*args)


def test_an_answer_goes_on_between_the_chunks_of_a_job_and_the_job_between_its_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("x2l_cluster.engine.turns.PATIENCE_S", WAIT_S)
    lm = Device(qwen3_vl_model(0), byte_tokenizer(), weights="tiny0")
    me = threading.current_thread().name
    with engine(lm=lm) as x2l:
        x2l.index(mosaic(tmp_path / "asked.mp4", 12), video="asked", **SMALL)
        with AnswerLoop(x2l.answerer) as loop:
            ticket = loop.submit(x2l.asked("asked", "What is shown?"), LONG)
            next(event for event in ticket.follow() if isinstance(event, Delta))
            lm.used.clear()
            lm.clashes = 0
            manifest = x2l.index(mosaic(tmp_path / "new.mp4", 20, seed=1), video="new", **SMALL)
            used = list(lm.used)
            assert not ticket.done  # it was being written all the time
            ticket.cancel()
    assert lm.clashes == 0
    mine = [place for place, (who, _) in enumerate(used) if who == me]
    assert sum(used[place][1] == "frames" for place in mine) == len(manifest.chunks) >= 5
    for before, after in pairwise(mine):
        assert any(who == "x2l_decode" for who, _ in used[before + 1 : after]), used[before : after + 1]
