"""``x2l up`` as a process, and the other commands over it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.acceptance.conftest import COMMAND, ROOT, X2L, film
from tests.acceptance.running import Running
from x2l_cluster.client import X2L as Client
from x2l_cluster.messages import JobState

ASK = ("ask", "clip", "What is shown at 0:12?", "Is it red?", "--detail", "k=2", "--max-tokens", "8")


Up = Callable[..., Running]


@pytest.fixture
def up(x2l: X2L) -> Iterator[Up]:
    """Starts a service on a free port; each time over the same folder."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> Running:
        process = x2l.start("up", "--port", "0", "--json", *words)
        started.append(process)
        return Running.of(process)

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_what_was_kept_long_enough_goes_by_itself_and_files_below_a_root_are_read(
    x2l: X2L, up: Up, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("KEEP_S", "1"), ("TIDY_EVERY_S", "0.2"), ("ROOTS", f'["{clip.parent}"]')):
        monkeypatch.setitem(x2l.env, f"X2L_{name}", value)
    service = up()
    with Client(service.url) as client:
        job = client.wait(client.index(path=str(clip), video="clip").id)
        assert job.state is JobState.READY, job
        while client.videos():
            pass
    assert "Traceback" not in service.ended(signal.SIGTERM)


def test_a_service_is_brought_up_used_and_stopped(x2l: X2L, up: Up, clip: Path) -> None:
    service = up()
    out, err = x2l("index", str(clip), "--id", "clip", "--url", service.url)
    assert out.startswith("clip  8 chunks, 00:30, fine ") and out.count("\n") == 1
    assert err.splitlines()[0].startswith("clip.mp4: sent ")
    assert err.splitlines()[-1] == "clip.mp4: 8 of 8, up to 00:30"
    there = x2l.json(*ASK, X2L_URL=service.url)
    assert not any(answer["degraded"] for answer in there)
    assert {e["tier"] for answer in there for e in answer["evidence"]} <= {"remote", "device"}
    searched = ("search", "Is it red?", "--limit", "3")
    moments = x2l.json(*searched, X2L_URL=service.url)
    (job,) = x2l.json("jobs", "list", X2L_URL=service.url)
    assert (job["state"], job["video"], job["chunks_done"]) == ("ready", "clip", 8)
    (listed,) = x2l.json("videos", X2L_URL=service.url)
    assert x2l.json("reindex", "clip", X2L_URL=service.url)["recipe"] == listed["recipe"], "it is as it should be"
    assert x2l.json("videos", "--store", "up:") == [listed], "commands that work beside it see what it keeps"
    assert f"x2l is up at {service.url}" in service.ended(signal.SIGTERM)
    assert x2l.json("videos", "--store", "up:") == [listed], "and when it is down, too"
    exported = x2l.json("export", "clip", str(clip.with_suffix(".x2l")), "--store", "up:")
    assert exported["coarse_chunks"] == 0, "its fine detail was packed up"
    # The same without a service, in a store of its own.
    assert x2l.json("videos") == []
    x2l("index", str(clip), "--id", "clip")
    assert [(a["text"], a["plan"]) for a in x2l.json(*ASK)] == [(a["text"], a["plan"]) for a in there]
    assert len(moments["moments"]) == 3 and x2l.json(*searched) == moments


def test_workers_on_ray_index_and_answer_and_are_gone_with_it(x2l: X2L, up: Up, clip: Path) -> None:
    service = up("--ray")
    x2l("index", str(clip), "--id", "clip", "--url", service.url)
    there = x2l.json(*ASK, X2L_URL=service.url)
    assert not any(answer["degraded"] for answer in there)
    running = " ".join(_title(process) for process in psutil.Process(service.process.pid).children(recursive=True))
    assert "PrefillWorker" in running and "ServeReplica:answerer" in running
    service.ended(signal.SIGTERM)
    x2l("index", str(clip), "--id", "clip")
    assert [(a["text"], a["plan"]) for a in x2l.json(*ASK)] == [(a["text"], a["plan"]) for a in there]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.parametrize("how", ["told", "killed"])
def test_what_was_indexed_is_there_again_in_full_detail(x2l: X2L, up: Up, clip: Path, how: str) -> None:
    first = up()
    x2l("index", str(clip), "--id", "clip", "--url", first.url)
    there = x2l.json(*ASK, X2L_URL=first.url)
    listed = x2l.json("videos", X2L_URL=first.url)
    _ = first.ended(signal.SIGINT) if how == "told" else first.killed()
    second = up()
    assert not any(place.exists() for place in first.places), "what the killed one left is swept"
    before = [{k: v for k, v in video.items() if k != "status"} for video in listed]
    assert [{k: v for k, v in video.items() if k != "status"} for video in x2l.json("videos", X2L_URL=second.url)] == (
        before
    )
    with Client(second.url) as client:
        if how == "killed":  # the memory of fine blocks went with it, and is filled again
            while len(jobs := client.jobs()) < 2:
                client.ready()
            assert client.wait(jobs[0].id).state is JobState.READY
        known = len(client.jobs())
    again = x2l.json(*ASK, X2L_URL=second.url)
    assert [(a["text"], a["degraded"], a["plan"]) for a in again] == [(a["text"], False, a["plan"]) for a in there]
    assert known == {"told": 1, "killed": 2}[how]
    second.ended(signal.SIGTERM)


def test_a_second_one_over_the_same_folder_says_where_the_first_is(x2l: X2L, up: Up) -> None:
    first = up()
    for words in (["--port", "0"], ["--port", first.url.rpartition(":")[2]]):
        error = x2l.json("up", *words, code=3)["error"]
        assert f"--url {first.url}" in error["message"] and str(first.process.pid) in error["message"]
        assert "--data" in error["message"]
    assert x2l.json("videos", X2L_URL=first.url) == []
    with_other_folder = up("--data", str(Path(x2l.env["HOME"]) / "other"))
    assert with_other_folder.url != first.url


def test_servers_that_die_are_started_again(x2l: X2L, up: Up, clip: Path) -> None:
    service = up()
    x2l("index", str(clip), "--id", "clip", "--url", service.url)
    there = x2l.json(*ASK, X2L_URL=service.url)
    for server in service.servers:
        os.kill(server.pid, signal.SIGKILL)
    psutil.wait_procs(service.servers, timeout=20)
    with Client(service.url) as client:
        assert [video.id for video in client.videos()] == ["clip"]
        while len(jobs := client.jobs()) < 2:
            client.ready()
        assert client.wait(jobs[0].id).state is JobState.READY
    again = x2l.json(*ASK, X2L_URL=service.url)
    assert [(a["text"], a["degraded"]) for a in again] == [(a["text"], False) for a in there]
    service.ended(signal.SIGTERM)


def test_an_address_that_is_taken_says_what_to_do(x2l: X2L) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        error = x2l.json("up", "--port", str(taken.getsockname()[1]), code=3)["error"]
    assert "listens on" in error["message"] and "--port" in error["message"]


def test_it_ends_with_whoever_started_it(x2l: X2L) -> None:
    process = subprocess.Popen(
        [*COMMAND, "up", "--port", "0", "--while-read"], env=x2l.env, cwd=ROOT, stdin=-1, stderr=-1, text=True
    )
    assert process.stdin is not None and process.stderr is not None
    for line in process.stderr:
        if line.startswith("x2l is up at"):
            break
    children = psutil.Process(process.pid).children(recursive=True)
    process.stdin.close()
    assert process.wait(60) == 0
    process.stderr.close()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_a_service_that_wants_keys_takes_those_that_are_made_for_it(x2l: X2L, up: Up) -> None:
    before = x2l.json("keys", "create", "anna", "--label", "while it is down")["secret"]
    service = up("--api-keys", "required")
    url = service.url
    assert x2l.json("videos", "--url", url, code=3)["error"]["code"] == "unauthenticated"
    key = x2l.json("keys", "create", "anna", "--label", "for a test")
    assert key["id"] in [known["id"] for known in x2l.json("keys", "list", "anna")]
    for secret in (before, key["secret"]):
        assert x2l.json("videos", X2L_URL=url, X2L_API_KEY=secret) == []
    x2l("keys", "revoke", "anna", key["id"])
    assert x2l.json("videos", X2L_URL=url, X2L_API_KEY=key["secret"], code=3)["error"]["code"] == "unauthenticated"
    assert key["secret"] not in service.ended(signal.SIGINT)


def test_what_the_service_chooses_is_not_chosen_beside_its_url(x2l: X2L, clip: Path) -> None:
    error = x2l.json("index", str(clip), "--url", "http://127.0.0.1:9", "--store", "memory:", code=2)["error"]
    assert "--store" in error["message"]


@pytest.mark.parametrize("how", ["told", "killed"])
def test_ctrl_c_leaves_the_job_to_the_service_and_that_to_the_next_one(
    x2l: X2L, up: Up, tmp_path: Path, how: str
) -> None:
    service = up()
    long = film(tmp_path / "long.mp4", seconds=2400)
    watching = x2l.start("index", str(long), "--id", "long", "--fps", "2", "--url", service.url)
    assert watching.stderr is not None
    for line in watching.stderr:
        if line.startswith("long.mp4: 1 of"):
            break
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=60)
    assert watching.returncode in (130, -signal.SIGINT)
    (job,) = x2l.json("jobs", "list", X2L_URL=service.url)
    assert job["state"] == "running"
    assert "Traceback" not in err and "no longer watching" in err
    commands = re.findall("`x2l (.*?)`", err)
    assert commands == [f"jobs {word} {job['id']} --url {service.url}" for word in ("watch", "cancel")]
    again = x2l.start(*commands[0].split())  # one comes back to it with what was told, and may leave again
    assert again.stderr is not None
    while " of " not in again.stderr.readline():
        pass
    again.send_signal(signal.SIGINT)
    assert "no longer watching" in again.communicate(timeout=60)[1]
    if how == "told":
        assert "go on with the next x2l up" in service.ended(signal.SIGTERM)
    else:
        service.killed()
    url = up().url
    now = next(known for known in x2l.json("jobs", "list", X2L_URL=url) if known["id"] == job["id"])
    assert now["state"] in ("queued", "running")
    assert now["chunks_done"] >= job["chunks_done"] > 0
    x2l("jobs", "cancel", job["id"], X2L_URL=url)
    assert "was cancelled" in x2l("jobs", "watch", job["id"], X2L_URL=url, code=130)[1]
