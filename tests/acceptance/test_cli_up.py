"""``x2l up`` as a process, and the other commands over it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.acceptance.conftest import X2L, film

Up = Callable[..., tuple[str, subprocess.Popen[str]]]


@pytest.fixture
def up(x2l: X2L) -> Iterator[Up]:
    """Starts a service on a free port; returns its URL and process."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> tuple[str, subprocess.Popen[str]]:
        process = x2l.start("up", "--port", "0", "--json", *words)
        started.append(process)
        assert process.stdout is not None and process.stderr is not None
        told = process.stdout.readline()
        assert told, process.stderr.read()
        return json.loads(told)["url"], process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def _ended(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """What it wrote until it had ended, as it should when it is told to, with all it had started."""
    everything = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(everything, timeout=20)
    assert not alive
    return errors


def test_a_service_is_brought_up_used_and_stopped(x2l: X2L, up: Up, clip: Path) -> None:
    url, process = up()
    out, err = x2l("index", str(clip), "--id", "clip", "--url", url)
    assert out.startswith("clip  8 chunks, 00:30, fine ") and out.count("\n") == 1
    assert err.splitlines()[0].startswith("clip.mp4: sent ")
    assert err.splitlines()[-1] == "clip.mp4: 8 of 8, up to 00:30"
    words = ("ask", "clip", "What is shown at 0:12?", "Is it red?", "--detail", "k=2", "--max-tokens", "8")
    there = x2l.json(*words, X2L_URL=url)
    searched = ("search", "Is it red?", "--limit", "3")
    moments = x2l.json(*searched, X2L_URL=url)
    listed = x2l.json("videos", X2L_URL=url)
    (job,) = x2l.json("jobs", "list", X2L_URL=url)
    assert (job["state"], job["video"], job["chunks_done"]) == ("ready", "clip", 8)
    assert x2l.json("reindex", "clip", X2L_URL=url)["recipe"] == listed[0]["recipe"], "it is as it should be"
    assert f"x2l is up at {url}" in _ended(process, signal.SIGTERM)
    # The same store without the service.
    assert [(a["text"], a["plan"]) for a in x2l.json(*words)] == [(a["text"], a["plan"]) for a in there]
    assert len(moments["moments"]) == 3 and x2l.json(*searched) == moments
    assert x2l.json("videos") == listed


def test_an_address_that_is_taken_says_what_to_do(x2l: X2L) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        error = x2l.json("up", "--port", str(taken.getsockname()[1]), code=3)["error"]
    assert "listens on" in error["message"] and "--port" in error["message"]


def test_a_service_that_wants_keys_takes_those_that_are_made_for_it(x2l: X2L, up: Up) -> None:
    url, process = up("--api-keys", "required")
    assert x2l.json("videos", "--url", url, code=3)["error"]["code"] == "unauthenticated"
    key = x2l.json("keys", "create", "anna", "--label", "for a test")
    assert [known["id"] for known in x2l.json("keys", "list", "anna")] == [key["id"]]
    assert x2l.json("videos", X2L_URL=url, X2L_API_KEY=key["secret"]) == []
    x2l("keys", "revoke", "anna", key["id"])
    assert x2l.json("videos", X2L_URL=url, X2L_API_KEY=key["secret"], code=3)["error"]["code"] == "unauthenticated"
    assert key["secret"] not in _ended(process, signal.SIGINT)


def test_what_the_service_chooses_is_not_chosen_beside_its_url(x2l: X2L, clip: Path) -> None:
    error = x2l.json("index", str(clip), "--url", "http://127.0.0.1:9", "--store", "memory:", code=2)["error"]
    assert "--store" in error["message"]


def test_ctrl_c_leaves_the_job_to_the_service_and_that_to_the_next_one(x2l: X2L, up: Up, tmp_path: Path) -> None:
    url, process = up()
    watching = x2l.start("index", str(film(tmp_path / "long.mp4", seconds=3000)), "--id", "long", "--url", url)
    assert watching.stderr is not None
    for line in watching.stderr:
        if line.startswith("long.mp4: 1 of"):
            break
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=60)
    assert watching.returncode in (130, -signal.SIGINT)
    (job,) = x2l.json("jobs", "list", X2L_URL=url)
    assert job["state"] == "running"
    assert "Traceback" not in err and f"x2l jobs cancel {job['id']}" in err
    assert "go on with the next x2l up" in _ended(process, signal.SIGTERM)
    url, _ = up()
    (again,) = x2l.json("jobs", "list", X2L_URL=url)
    assert again["id"] == job["id"] and again["state"] in ("queued", "running")
    assert again["chunks_done"] >= job["chunks_done"] > 0
    x2l("jobs", "cancel", job["id"], X2L_URL=url)
    assert "was cancelled" in x2l("jobs", "watch", job["id"], X2L_URL=url, code=130)[1]
