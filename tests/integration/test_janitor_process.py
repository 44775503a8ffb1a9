"""``python -m services.janitor`` as a process: what it prints, how it ends, what it pushes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from tests.kept import kept

ROOT = Path(__file__).parents[2]


def environment(folder: Path, **more: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("X2L_")}
    return plain | {"X2L_STORE": f"disk:{folder / 'store'}", "PYTHONPATH": str(ROOT)} | more


def once(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.janitor", *words],
        env=environment(folder, **more),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_pass_says_what_it_has_done_and_ends(tmp_path: Path) -> None:
    with kept("disk", tmp_path) as here:
        here.index("kept")
        here.index("gone")
        here.stores.state.delete("ada", "gone")
    done = once(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0 due; 0 expired; 0 decayed; 9 orphans; 9000 bytes freed, 0 evicted\n"
    assert "video gone of tenant ada: 9 blobs" in done.stderr
    again = once(tmp_path, "--json")
    report = json.loads(again.stdout)
    assert (again.returncode, report["orphans"], report["swept"], report["problems"]) == (0, 0, False, {})
    with kept("disk", tmp_path) as here:
        assert here.held("kept") == here.named("kept")


def test_settings_it_cannot_use_are_wrong_usage(tmp_path: Path) -> None:
    for more in ({"X2L_KEEP_S": "soon"}, {"X2L_KEEP_S": "0"}, {"X2L_STORE": "somewhere"}):
        done = once(tmp_path, **more)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr and (more.get("X2L_STORE") or "X2L_KEEP_S") in done.stderr
    assert once(tmp_path, "--every", "never").returncode == 2


def test_a_state_that_does_not_answer_is_for_later(tmp_path: Path) -> None:
    done = once(tmp_path, X2L_STATE="redis://127.0.0.1:1?durable=true")
    assert done.returncode == 5 and "store_unavailable" in done.stderr and "Traceback" not in done.stderr


def test_it_goes_on_until_it_is_told_to_stop(tmp_path: Path) -> None:
    with kept("disk", tmp_path) as here:
        here.index("v1")
    words = [sys.executable, "-m", "services.janitor", "--every", "0.05", "--json"]
    env = environment(tmp_path, X2L_SWEEP_EVERY_S="0")
    process = subprocess.Popen(words, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline())["orphans"] == 0
        with kept("disk", tmp_path) as here:
            here.stores.state.delete("ada", "v1")
        while json.loads(process.stdout.readline())["orphans"] != 9:
            pass
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


@contextmanager
def gateway() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """What takes pushed metrics: its address, and what it was given."""
    given: list[tuple[str, str]] = []

    class Taking(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            given.append((self.path, self.rfile.read(int(self.headers["content-length"])).decode()))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Taking) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", given
        finally:
            server.shutdown()
            thread.join()


def test_its_metrics_are_pushed_and_a_gateway_that_is_away_is_only_told_of(tmp_path: Path) -> None:
    with kept("disk", tmp_path) as here:
        here.index("gone")
        here.stores.state.delete("ada", "gone")
    with gateway() as (url, given):
        assert once(tmp_path, X2L_PUSH_URL=url).returncode == 0
    ((path, text),) = given
    assert path == "/metrics/job/x2l-janitor"
    assert 'x2l_janitor_removed_total{what="orphan"} 9.0' in text and "x2l_janitor_passed_timestamp_seconds 1." in text
    done = once(tmp_path, X2L_PUSH_URL=url)
    assert done.returncode == 0 and "could not be pushed" in done.stderr
