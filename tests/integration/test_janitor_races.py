"""Orphans are looked for while everything goes on: nothing that is named, or about to be, ever goes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tests.kept import BLOB, OTHER, RECIPE, Kept, kept
from x2l_cluster.errors import StateError, StoreUnavailable, UnknownVideo
from x2l_cluster.kv.store import KVStore
from x2l_cluster.types import BlockKey, Kind, Manifest, Packed

VIDEOS = ("v1", "v2")
CHUNKS = 3


@pytest.fixture(params=["memory", "disk", "server"])
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kept]:
    server = request.getfixturevalue("empty_valkey") if request.param == "server" else None
    with kept(request.param, tmp_path, server) as made:
        yield made


def run(here: Kept, video: str, chance: random.Random) -> None:
    """An indexing run that goes on behind what is sealed; it may be overtaken, or die after any step."""
    recipe = chance.choice((RECIPE, OTHER))
    manifest = here.begin(video, recipe=recipe)
    for chunk in range(len(manifest.chunks), CHUNKS):
        if chance.random() < 0.15:
            here.put(manifest, chunk)
            return
        manifest = here.seal(manifest, chunk)
    if chance.random() < 0.7:
        manifest = packed(here, manifest)
    if chance.random() < 0.9:
        here.stores.state.finish("ada", video, recipe.digest, manifest.epoch)
    if chance.random() < 0.5:
        with suppress(StateError):
            here.stores.supersede(here.stores.state.manifest("ada", video, recipe.digest))


def packed(here: Kept, manifest: Manifest) -> Manifest:
    """Coarse blobs move into a segment: stored, then published, then the old ones go."""
    front = Packed(epoch=manifest.epoch, chunk=0, offset=0)
    loose = [row for row in manifest.chunks if row.blocks[Kind.H].packed is None]
    if not loose:
        return manifest
    rows = [replace(row, blocks={**row.blocks, "h": replace(row.blocks["h"], packed=front)}) for row in loose]
    (key,) = manifest.keys(rows[0].blocks["h"], 0)
    here.stores.kv.put(key, BLOB)
    place = (manifest.tenant, manifest.video, manifest.recipe.digest, manifest.epoch)
    now = here.stores.state.revise(*place, rows)
    here.stores.kv.delete(manifest.named - now.named)
    return now


def work(here: Kept, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(12):
        video = chance.choice(VIDEOS)
        with suppress(StateError, UnknownVideo):
            match chance.choices(("run", "delete", "decay"), (8, 1, 2))[0]:
                case "run":
                    run(here, video, chance)
                case "delete":
                    here.stores.delete_video("ada", video)
                case "decay":
                    here.stores.decay(here.stores.state.manifest("ada", video))


def wrong(here: Kept) -> set[BlockKey]:
    """What a row names and no store has."""
    named: set[BlockKey] = set()
    for record in here.stores.state.videos("ada"):
        named |= here.stores.state.manifest("ada", record.video, record.recipe.digest).named
    held = {key for video in VIDEOS for key in here.stores.kv.keys("ada", video)}
    return named - held


def go_on(here: Kept, seeds: range) -> None:
    done = Event()

    def sweep() -> None:
        while not done.is_set():
            report = here.janitor().once()
            assert report.ok, report

    with ThreadPoolExecutor(len(seeds) + 1) as pool:
        sweeping = pool.submit(sweep)
        try:
            for working in [pool.submit(work, here, seed) for seed in seeds]:
                working.result()
        finally:
            done.set()
        sweeping.result()
    assert not wrong(here)
    here.janitor().once()
    assert not wrong(here)
    for video in VIDEOS:
        for recipe in (RECIPE, OTHER):
            held = {key for key in here.held(video) if key.recipe == recipe.digest}
            try:
                now = here.stores.state.manifest("ada", video, recipe.digest)
            except UnknownVideo:
                assert not held
            else:
                assert {key for key in held - now.named if key.epoch < now.epoch} == set()


class Meanwhile:
    """A store before whose deletion of a video, and behind it, something happens once."""

    def __init__(self, inner: KVStore, before: Callable[[], object], behind: Callable[[], object]) -> None:
        self._inner, self._before, self._behind = inner, [before], [behind]

    def delete_video(self, tenant: str, video: str) -> int:
        for happens in self._before[:]:
            self._before.remove(happens)
            happens()
        freed = self._inner.delete_video(tenant, video)
        for happens in self._behind[:]:
            self._behind.remove(happens)
            happens()
        return freed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_an_index_begun_while_its_video_is_deleted_loses_all_or_nothing(here: Kept) -> None:
    here.index("v1")
    stores = here.stores
    during = replace(stores, kv=Meanwhile(stores.kv, lambda: here.index("v1", chunks=2), lambda: None))  # type: ignore[arg-type]
    assert during.delete_video("ada", "v1") == 15 * len(BLOB)
    assert stores.state.videos("ada") == [] and here.held("v1") == set()
    here.index("v1")

    class After:
        """A state that is asked how far epochs have come; then somebody begins."""

        begun: list[Manifest] = []  # noqa: RUF012

        def epoch(self, tenant: str) -> int:
            epoch = stores.state.epoch(tenant)
            if not self.begun:
                self.begun.append(here.index("v1", chunks=2))
            return epoch

        def __getattr__(self, name: str) -> Any:
            return getattr(stores.state, name)

    assert replace(stores, state=After()).delete_video("ada", "v1") == 9 * len(BLOB)  # type: ignore[arg-type]
    assert here.held("v1") == here.named("v1") and len(here.named("v1")) == 6


def test_a_video_that_is_begun_again_and_again_is_told_of(here: Kept) -> None:
    here.index("v1")

    class Always(Meanwhile):
        def delete_video(self, tenant: str, video: str) -> int:
            here.begin("v1")
            return self._inner.delete_video(tenant, video)

    stores = replace(here.stores, kv=Always(here.stores.kv, lambda: None, lambda: None))  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable, match="stop its jobs"):
        stores.delete_video("ada", "v1")


def test_whatever_goes_on_only_orphans_go(here: Kept) -> None:
    go_on(here, range(4))


@pytest.mark.soak
def test_whatever_goes_on_for_long_only_orphans_go(here: Kept) -> None:
    many = 40 if here.state.durable else 400  # a disk takes its time
    for start in range(0, many, 4):
        go_on(here, range(start, start + 4))
