"""Stores by URL."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tiers import block
from x2l_cluster.errors import BlockMissing, InvalidInput, StoreFull, StoreUnavailable
from x2l_cluster.kv.connect import shown
from x2l_cluster.kv.disk import DiskKV
from x2l_cluster.kv.faulty import Fault, FaultyKV
from x2l_cluster.kv.measured import Measured
from x2l_cluster.kv.memory import MemoryKV
from x2l_cluster.kv.open import open_kv
from x2l_cluster.kv.remote import RemoteKV
from x2l_cluster.kv.routed import RoutedKV
from x2l_cluster.kv.tiered import TieredKV
from x2l_cluster.state.disk import DiskState
from x2l_cluster.state.memory import MemoryState
from x2l_cluster.state.open import open_state
from x2l_cluster.state.remote import RemoteState
from x2l_cluster.types import BlockKey, Tier

KEY = BlockKey(tenant="ada", video="v1", recipe="r1", epoch=1, kind="l", chunk=0)


def test_urls_name_stores(tmp_path: Path) -> None:
    cases: list[tuple[str, type, type]] = [
        ("memory:", MemoryKV, MemoryState),
        (f"disk:{tmp_path}", DiskKV, DiskState),
        ("redis://localhost:1", RemoteKV, RemoteState),
        ("valkey://localhost:1/3", RemoteKV, RemoteState),
        ("valkeys://localhost:1", RemoteKV, RemoteState),
        ("unix:///tmp/none.sock", RemoteKV, RemoteState),
        (f"l=unix:///tmp/none.sock;disk:{tmp_path}", RoutedKV, DiskState),
        (f"tiers:memory:|unix:///tmp/none.sock|disk:{tmp_path}", TieredKV, DiskState),
        (f"h=memory:;tiers:memory:|faulty:seed=1@disk:{tmp_path}", RoutedKV, DiskState),
        (f"faulty:seed=1@tiers:memory:|disk:{tmp_path}", FaultyKV, DiskState),
    ]
    for url, kv, state in cases:
        with open_kv(url) as blobs, open_state(url) as manifests:
            assert type(blobs.store if isinstance(blobs, Measured) else blobs) is kv
            assert type(manifests) is state


def test_an_arena_is_opened_by_url_and_bad_ones_are_refused() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        with open_kv(f"l=host:{folder}/arena?budget={8 << 20};memory:") as store:
            assert store.route("l").tier is Tier.HOST
            store.put(KEY, b"x")
            assert bytes(store.get(KEY)) == b"x"
        with open_kv(f"tiers:host:{folder}/arena?budget={8 << 20}|disk:{folder}/slow") as store:
            assert [store.route(kind).tier for kind in "lhx"] == [Tier.DISK] * 3
            assert store.durable
            store.put(KEY, block(KEY))
            store.flush()
            assert [store.fetch(KEY).tier for _ in range(2)] == [Tier.DISK, Tier.HOST]
        for bad in ("host:", f"host:{folder}/a?budget=much", f"host:{folder}/a?bugdet=1"):
            with pytest.raises(InvalidInput):
                open_kv(bad)


def test_faults_are_put_before_any_place_and_state_knows_none(tmp_path: Path) -> None:
    url = f"faulty:seed=3,drop=1,kinds=l@disk:{tmp_path}"
    with open_kv(url) as store, open_state(url) as state:
        assert type(state) is DiskState
        assert isinstance(store, Measured)
        assert isinstance(store.store, FaultyKV)
        store.put(KEY, b"x")
        with pytest.raises(BlockMissing):
            store.get(KEY)
        assert store.store.struck == {Fault.DROP: 1}
        assert list(store.keys("ada", "v1")) == [KEY]
    with open_kv(f"l={url};memory:") as store:
        store.put(KEY, b"x")
        with pytest.raises(BlockMissing):
            store.get(KEY)


def test_limits_are_put_before_any_place_and_state_knows_none(tmp_path: Path) -> None:
    url = f"bounded:budget=1000,high=0.5,low=0.2@disk:{tmp_path}"
    with open_kv(url) as store, open_state(url) as state:
        assert type(state) is DiskState
        for chunk in range(10):
            store.put(replace(KEY, chunk=chunk), bytes(100))
            assert store.held_bytes() <= 500
    for bad in (
        "@memory:",
        "high=1@memory:",
        "budget=x@memory:",
        "budget=9,ttl=5@memory:",
        "budget=9@faulty:@memory:",
        "budget=9,ttl=x@redis://h",
    ):
        with pytest.raises(InvalidInput):
            open_kv(f"bounded:{bad}")
    with open_kv("bounded:budget=1000,ttl=60@redis://localhost:1") as store:
        assert isinstance(store, Measured)
        assert store.tier is Tier.REMOTE


def test_one_folder_serves_both(tmp_path: Path) -> None:
    url = f"disk:{tmp_path}/new/place"
    with open_kv(url) as blobs, open_state(url) as state:
        blobs.put(KEY, b"x")
        state.bind("ada", "c1", "v1")
    with open_kv(url) as blobs, open_state(url) as state:
        assert blobs.get(KEY) == b"x"
        assert state.find("ada", "c1") == "v1"


def test_kinds_go_where_the_url_says(tmp_path: Path) -> None:
    with open_kv(f"l=memory:;disk:{tmp_path}") as store:
        assert [store.route(kind).tier for kind in ("l", "h", "x-1f")] == [Tier.HOST, Tier.DISK, Tier.DISK]
        assert not store.durable
        assert store.route("h").durable


@pytest.mark.parametrize(
    "url",
    [
        "",
        "memory",
        "memory:x",
        "disk:",
        "ftp://x",
        "redis:x",
        "/tmp",
        "q=memory:;memory:",
        "l=;memory:",
        "l=memory:;",
        "faulty:",
        "faulty:flip=0.1",
        "faulty:flip=0.1@",
        "faulty:@ftp://x",
        "tiers:",
        "tiers:memory:",
        "tiers:memory:|",
        "tiers:memory:|tiers:memory:|disk:x",
    ],
)
@pytest.mark.parametrize("opens", [open_kv, open_state])
def test_urls_that_name_nothing_are_refused(url: str, opens: Callable[[str], Any]) -> None:
    with pytest.raises(InvalidInput, match="disk:PATH"):
        opens(url)


def test_a_folder_that_cannot_be_used_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for opens in (open_kv, open_state):
        with pytest.raises(StoreUnavailable, match="file"):
            opens(f"disk:{tmp_path}/file")


def test_credentials_are_never_shown() -> None:
    assert shown("redis://me:secret@host:6379/2?password=hush") == "redis://host:6379/2"
    assert shown("unix://me:secret@/run/v.sock?db=1") == "unix:///run/v.sock"


def test_a_memory_store_keeps_to_its_budget() -> None:
    with MemoryKV(budget_bytes=100) as store:
        store.put(KEY, bytes(60))
        other = BlockKey(tenant="ada", video="v1", recipe="r1", epoch=1, kind="l", chunk=1)
        with pytest.raises(StoreFull, match="60 of 100"):
            store.put(other, bytes(41))
        assert store.held_bytes() == 60
        store.put(other, bytes(40))
        store.put(KEY, bytes(10))
        store.delete_video("ada", "v1")
        assert store.held_bytes() == 0
