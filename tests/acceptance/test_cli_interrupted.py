"""Stopped in the middle: Ctrl-C, Ctrl-C twice, kill -9. What is sealed stays, and nothing is left running."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.acceptance.conftest import X2L, film
from x2l_cluster.state.open import open_state
from x2l_cluster.types import LOCAL_TENANT, IndexStatus

CHUNKS = 100
# A process that was interrupted inside an exec() of its own ends by the signal; shells show 130 then, too.
INTERRUPTED = (130, -signal.SIGINT)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("clip") / "long.mp4", seconds=4 * CHUNKS)


def _index_until(x2l: X2L, clip: Path, chunk: int, *signals: signal.Signals) -> tuple[int, str, list[psutil.Process]]:
    """Starts indexing, sends signals after so many chunks; returns exit code, the rest of stderr, the children."""
    process = x2l.start("index", str(clip), "--id", "long")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(f"long.mp4: {chunk} of"):
            break
    children = psutil.Process(process.pid).children(recursive=True)
    assert children, "the decoder is a process of its own"
    for number in signals:
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err, children


def _assert_gone(children: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def _sealed(x2l: X2L, status: IndexStatus = IndexStatus.INDEXING) -> int:
    with open_state(x2l.env["X2L_STORE"]) as state:
        (record,) = state.videos(LOCAL_TENANT)
    assert record.status is status
    return record.chunks


def _finish(x2l: X2L, clip: Path, sealed: int) -> None:
    _, err = x2l("index", str(clip), "--id", "long")
    assert err.count("kept from before") == sealed
    assert err.splitlines()[-1].startswith(f"long.mp4: {CHUNKS} of {CHUNKS}")
    assert _sealed(x2l, IndexStatus.READY) == CHUNKS


def test_ctrl_c_stops_at_a_chunk_boundary_and_the_next_run_goes_on(x2l: X2L, long_clip: Path) -> None:
    code, err, children = _index_until(x2l, long_clip, 5, signal.SIGINT)
    assert code in INTERRUPTED
    assert "stopping at the next chunk boundary" in err and "index it again to go on" in err
    assert "Traceback" not in err
    _assert_gone(children)
    sealed = _sealed(x2l)
    assert 5 <= sealed < CHUNKS
    _finish(x2l, long_clip, sealed)


def test_a_second_ctrl_c_stops_at_once(x2l: X2L, long_clip: Path) -> None:
    code, err, children = _index_until(x2l, long_clip, 5, signal.SIGINT, signal.SIGINT)
    assert code in INTERRUPTED
    assert "Traceback" not in err
    _assert_gone(children)


def test_killed_and_gone_on_with(x2l: X2L, long_clip: Path) -> None:
    code, _, children = _index_until(x2l, long_clip, 20, signal.SIGKILL)
    assert code == -signal.SIGKILL
    _assert_gone(children)
    sealed = _sealed(x2l)
    assert 20 <= sealed < CHUNKS
    _finish(x2l, long_clip, sealed)


def test_ctrl_c_while_everything_is_still_being_loaded(x2l: X2L, clip: Path) -> None:
    process = x2l.start("index", str(clip))
    _wait_for_library(process, "libtorch_cpu")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode in INTERRUPTED
    assert (out, err) == ("", "cancelled: interrupted\n")


def _wait_for_library(process: subprocess.Popen[str], name: str) -> None:
    """Until the process has got so far as to load it."""
    while process.poll() is None:
        if any(name in mapped.path for mapped in psutil.Process(process.pid).memory_maps()):
            return
    raise AssertionError("it ended before")
