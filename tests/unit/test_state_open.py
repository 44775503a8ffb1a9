"""All state of a service by one URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from x2l_cluster.errors import InvalidInput, StoreUnavailable
from x2l_cluster.messages import JobState
from x2l_cluster.state.memory import MemoryState
from x2l_cluster.state.open import State, open_ledger, open_state


@pytest.mark.parametrize("kind", ["disk", "remote"])
def test_what_was_kept_is_there_when_the_place_is_opened_again(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    url = f"disk:{tmp_path}" if kind == "disk" else request.getfixturevalue("empty_valkey")
    with State.open(url) as state:
        job = state.jobs.submit("ada", {"path": "a"})
        state.tenants.create("ada")
        key = state.tenants.create_key("ada")
        session = state.sessions.open("ada", ["v1"])
        state.manifests.bind("ada", "c1", "v1")
    with State.open(f"l=memory:;{url}") as state:
        assert state.jobs.job("ada", job.id) == job
        assert state.tenants.authenticate(key.secret).name == "ada"
        assert state.sessions.session("ada", session.id) == session
        assert state.manifests.find("ada", "c1") == "v1"


def test_state_in_memory_ends_with_its_opening() -> None:
    with State.open("memory:") as state:
        state.jobs.submit("ada", {})
        assert not state.durable
        assert state.sweep() == 0
    with State.open("memory:") as state:
        assert state.jobs.jobs("ada") == []


def test_manifests_that_are_open_already_are_used_and_left_open() -> None:
    manifests = MemoryState()
    with State.open("memory:", manifests=manifests) as state:
        assert state.manifests is manifests


def test_what_is_due_is_swept_everywhere() -> None:
    now = [0.0]
    with State.open("memory:", clock=lambda: now[0]) as state:
        job = state.jobs.submit("ada", {})
        state.jobs.lease("w", ttl_s=10.0)
        state.sessions.open("ada", ["v1"], ttl_s=10.0)
        now[0] = 11.0
        assert state.sweep() == 2
        assert state.jobs.job("ada", job.id).state is JobState.QUEUED


@pytest.mark.parametrize(
    ("url", "durable"),
    [
        ("memory:", False),
        ("unix:///tmp/none.sock", False),
        ("unix:///tmp/none.sock?durable=true&db=3", True),
        ("redis://h:1/3?durable=no", False),
        ("redis://h:1/3?durable=yes", True),
    ],
)
def test_whether_a_place_is_durable_is_declared(url: str, durable: bool) -> None:
    with State.open(url) as state:
        assert (state.durable, state.jobs.durable, state.manifests.durable) == (durable,) * 3


def test_a_folder_is_durable(tmp_path: Path) -> None:
    with State.open(f"disk:{tmp_path}") as state:
        assert state.durable


@pytest.mark.parametrize("url", ["", "disk:", "memory:x", "ftp://x", "redis:x"])
def test_other_places_are_refused(url: str) -> None:
    for opens in (open_state, State.open, lambda url: open_ledger(url, "jobs")):
        with pytest.raises(InvalidInput, match="give memory:"):
            opens(url)  # type: ignore[operator]


def test_a_place_that_cannot_be_used_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for url in (f"disk:{tmp_path}/file", f"unix://{tmp_path}/none.sock"):
        with pytest.raises(StoreUnavailable), State.open(url) as state:
            state.jobs.submit("ada", {})
