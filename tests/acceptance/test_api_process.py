"""A real service process: used, killed in the middle of a job, started again, stopped while it streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.acceptance.conftest import ROOT
from x2l_cluster.client import X2L
from x2l_cluster.errors import ConnectionLost, PathRefused
from x2l_cluster.messages import AnswerCreated, AnswerDelta, JobState

QUESTION = "What does the whistleblower hide?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    process: subprocess.Popen[str]
    url: str
    key: str
    log: Path

    def client(self) -> X2L:
        return X2L(self.url, key=self.key)


@pytest.fixture
def start(tmp_path: Path, checkpoint: Path, clip: Path) -> Iterator[Callable[[], Running]]:
    """Starts the service; each time over the same store."""
    started: list[subprocess.Popen[str]] = []
    env = {name: value for name, value in os.environ.items() if not name.startswith(("X2L_", "HF_"))}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}

    def begin() -> Running:
        log = tmp_path / f"log-{len(started)}"
        command = [sys.executable, "-m", "tests.acceptance.api_process"]
        place = [str(checkpoint), f"disk:{tmp_path / 'store'}", str(clip.parent)]
        with log.open("w") as errors:
            process = subprocess.Popen(
                [*command, *place], env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        started.append(process)
        assert process.stdout
        line = process.stdout.readline()
        assert line, log.read_text()
        told = json.loads(line)
        return Running(process=process, url=f"http://127.0.0.1:{told['port']}", key=told["key"], log=log)

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_a_film_is_indexed_asked_about_and_survives_a_kill(start: Callable[[], Running], clip: Path) -> None:
    first = start()
    with first.client() as x2l:
        with pytest.raises(PathRefused):
            x2l.index(path="/etc/passwd")
        job = x2l.index(path=str(clip), video="clip", idempotency_key="once")
        with closing(x2l.job_events(job.id)) as events:
            assert any(event.job.chunks_done for event in events)  # until there is progress
        first.process.kill()
        first.process.wait()
        with pytest.raises(ConnectionLost):
            X2L(first.url, key=first.key, sleep=lambda _: None).videos()
    second = start()
    with second.client() as x2l:
        again = x2l.index(path=str(clip), video="clip", idempotency_key="once")
        assert again.id == job.id  # accepted work is not lost, and is not done twice
        assert x2l.wait(job.id).state is JobState.READY
        told = list(x2l.job_events(job.id))
        assert [event.number for event in told] == sorted({event.number for event in told})
        said = x2l.ask(QUESTION, ["clip"], max_tokens=4).parts[0].completed
        assert said and said.answer and said.answer.covered
        log = first.log.read_text() + second.log.read_text()
    assert "request id=" in log
    for secret in ("whistleblower", first.key, second.key):
        assert secret not in log


def test_a_service_that_is_told_to_stop_ends_its_streams(start: Callable[[], Running], clip: Path) -> None:
    running = start()
    with running.client() as x2l:
        job = x2l.wait(x2l.index(clip, video="clip").id)
        assert job.state is JobState.READY
        with closing(x2l.answers(QUESTION, ["clip"], max_tokens=3000)) as events:
            assert isinstance(next(events), AnswerCreated)
            while not isinstance(next(events), AnswerDelta):
                pass
            running.process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionLost):
                for _ in events:
                    pass
        assert running.process.wait(60) in (0, -signal.SIGTERM), running.log.read_text()
    assert "Traceback" not in running.log.read_text()
