"""More videos than there is room for: every tier keeps to its budget, and every video can be asked about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import redis

from tests.arena import KEY, in_shared_memory
from tests.engines import SMALL, engine, files, mosaic
from tests.tiny import qwen3_vl
from x2l_cluster.engine import Generation, Stores, VideoEngine
from x2l_cluster.errors import StoreFull
from x2l_cluster.kv.bounded import BoundedKV
from x2l_cluster.kv.embedded import EmbeddedValkey
from x2l_cluster.kv.evict import Limits
from x2l_cluster.kv.evictor import Evictor
from x2l_cluster.kv.remote import RemoteKV
from x2l_cluster.types import Kind, Level

RECIPE = SMALL | {"height": 192, "width": 192}
_ITSELF_BYTES = 64 << 10
"""What a server takes for more connections and an index."""
WRITE = Generation(max_tokens=3, ignore_stop_ids=True)
QUESTION = "What is shown?"


def video(folder: Path, number: int) -> Path:
    return mosaic(folder / f"{number}.mp4", 4, seed=number, fps=1)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Bytes of one video, fine and the rest."""
    with engine() as x2l:
        manifest = x2l.index(video(tmp_path_factory.mktemp("one"), 0), **RECIPE)
        fine = manifest.size_bytes(Kind.L)
        return {"fine": fine, "rest": x2l.stores.kv.held_bytes() - fine}


@dataclass(frozen=True, slots=True)
class Place:
    """A store for fine blocks by URL, and what it holds of its budget now."""

    url: str
    held: Callable[[], int]
    budget: int


@contextmanager
def memory(fine_bytes: int) -> Iterator[Place]:
    yield Place(f"bounded:budget={fine_bytes},high=1,low=0.8@memory:", lambda: 0, fine_bytes)


@contextmanager
def server(fine_bytes: int) -> Iterator[Place]:
    with EmbeddedValkey() as valkey, RemoteKV(valkey.url) as watcher:
        watcher.put(KEY, b"x")  # what a server takes for itself it takes when it is first used
        Evictor(watcher, Limits(budget_bytes=1)).run(room_bytes=1)
        budget = watcher.usage_bytes() + _ITSELF_BYTES + int(1.25 * fine_bytes)
        yield Place(f"bounded:budget={budget},high=0.98,low=0.93@{valkey.url}", watcher.usage_bytes, budget)


def fill(place: Place, root: Path, rest_bytes: int, videos: int) -> tuple[int, int]:
    """Indexes, asks, deletes all. Returns how many answers had fine detail, and how many were flagged."""
    sharp = flagged = 0
    with engine(f"bounded:budget={rest_bytes}@disk:{root}", fine=place.url) as x2l:
        fine = x2l.stores.kv.route(Kind.L)
        rest = x2l.stores.kv.route(Kind.H)

        def check(_: object = None) -> None:
            assert max(place.held(), fine.held_bytes()) <= place.budget
            assert rest.held_bytes() <= rest_bytes

        names = []
        for number in range(videos):
            path = video(root, number)
            names.append(x2l.index(path, progress=check, **RECIPE).video)
            path.unlink()
            check()
        for name in names:
            answer = x2l.ask(name, QUESTION, detail="k=1", generation=WRITE)
            sharp += any(item.level is Level.L for item in answer.evidence)
            if answer.degraded:
                flagged += 1
                assert [item.degraded for item in answer.evidence] == ["missing"]
                assert answer.text == x2l.ask(name, QUESTION, detail="coarse", generation=WRITE).text
        for name in names:
            x2l.delete(name)
        assert (fine.held_bytes(), rest.held_bytes(), x2l.videos()) == (0, 0, [])
    assert files(root) == []
    assert sharp + flagged == videos
    return sharp, flagged


@pytest.mark.parametrize("where", [memory, server])
def test_four_times_more_videos_than_fit_are_all_answered(
    tmp_path: Path, one: dict[str, int], where: Callable[[int], AbstractContextManager[Place]]
) -> None:
    with where(2 * one["fine"]) as place:
        sharp, flagged = fill(place, tmp_path, int(8 * one["rest"] * 1.3), 8)
    assert sharp >= 1
    assert flagged >= 5


@pytest.mark.soak
@pytest.mark.parametrize("where", [memory, server])
def test_two_hundred_videos_against_a_budget_for_fifty_are_all_answered(
    tmp_path: Path, one: dict[str, int], where: Callable[[int], AbstractContextManager[Place]]
) -> None:
    with where(50 * one["fine"]) as place:
        sharp, flagged = fill(place, tmp_path, int(200 * one["rest"] * 1.3), 200)
    assert sharp >= 35
    assert flagged >= 140


def test_a_server_that_cannot_be_relieved_stops_indexing_and_nothing_is_half_visible(
    tmp_path: Path,
) -> None:
    """All kinds go to a server that is full for good: ``noeviction``, a small ``maxmemory``, nothing that may go."""
    with EmbeddedValkey() as valkey, RemoteKV(valkey.url) as store, redis.Redis.from_url(valkey.url) as raw:
        raw.config_set("maxmemory", store.usage_bytes() + (3 << 18))
        kept = BoundedKV(store, Evictor(store, Limits(budget_bytes=1 << 30)))
        stores = Stores.open("memory:")
        with VideoEngine(qwen3_vl(0), replace(stores, kv=kept)) as x2l:
            with pytest.raises(StoreFull) as caught:  # noqa: PT012
                for number in range(30):
                    x2l.index(mosaic(tmp_path / f"{number}.mp4", 16, seed=number, fps=1), **RECIPE)
            assert caught.value.retryable
            assert len(x2l.videos()) > 1
            for record in x2l.videos():
                manifest = x2l.manifest(record.video)
                there = set(store.keys("local", record.video))
                assert {key for key in manifest.named if key.kind != Kind.L} <= there <= manifest.named
                if manifest.chunks:
                    x2l.ask(manifest, QUESTION, generation=WRITE)
            raw.config_set("maxmemory", 0)
            manifest = x2l.index(tmp_path / f"{len(x2l.videos()) - 1}.mp4", repair=True, **RECIPE)
            assert not x2l.ask(manifest, QUESTION, generation=WRITE).degraded
            assert set(store.keys("local", manifest.video)) == manifest.named


def test_deleting_videos_leaves_nothing_in_any_tier(tmp_path: Path) -> None:
    """Host memory, a bounded server whose blobs have a time to live, a bounded disk, as one store."""
    with (
        in_shared_memory() as arena,
        EmbeddedValkey() as valkey,
        redis.Redis.from_url(valkey.url) as raw,
        engine(
            f"tiers:host:{arena}?budget={8 << 20}|bounded:budget={64 << 20},ttl=600@{valkey.url}"
            f"|bounded:budget={64 << 20}@disk:{tmp_path / 'disk'}"
        ) as x2l,
    ):
        names = [x2l.index(video(tmp_path, number), **RECIPE).video for number in range(3)]
        for name in names:
            x2l.ask(name, QUESTION, detail="fine", generation=WRITE)
        x2l.decay(names[0])
        assert raw.keys()
        for name in names:
            assert x2l.delete(name) > 0
        assert x2l.stores.kv.held_bytes() == 0
        assert raw.keys() == []
        assert files(tmp_path / "disk") == []
