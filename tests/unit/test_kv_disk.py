"""What only the disk store has: files that are whole, places that are clean, leftovers that are swept."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from x2l_cluster.errors import BlockCorrupt, StoreUnavailable
from x2l_cluster.kv.codec import decode
from x2l_cluster.kv.disk import DiskKV
from x2l_cluster.types import BlockKey

KEY = BlockKey(tenant="ada", video="v1", recipe="r1", epoch=1, kind="l", chunk=3, stripe=2)


def names(root: Path) -> list[str]:
    """Everything that is there, the machinery's own files aside."""
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if not p.relative_to(root).parts[0].startswith("."))


def test_a_block_is_one_file_at_a_place_that_says_what_it_is(tmp_path: Path) -> None:
    with DiskKV(tmp_path) as store:
        store.put(KEY, b"abc")
    assert (tmp_path / "ada/v1/r1/1/l/3.2").read_bytes() == b"abc"


def test_deleting_leaves_no_file_and_no_folder(tmp_path: Path) -> None:
    with DiskKV(tmp_path) as store:
        keys = [replace(KEY, chunk=c, epoch=e) for c in range(3) for e in range(2)]
        for key in keys:
            store.put(key, b"abc")
        store.delete_video("ada", "v1")
        assert names(tmp_path) == []
        store.put(KEY, b"abc")
        store.delete([KEY])
        assert names(tmp_path) == []
    assert [p.name for p in tmp_path.rglob("*")] == [".tmp", "lock"]


def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_kept(tmp_path: Path) -> None:
    with DiskKV(tmp_path) as living:
        dead = tmp_path / ".tmp" / "dead"
        dead.mkdir()
        (dead / "lock").touch()
        (dead / "half").write_bytes(b"x" * 100)
        with DiskKV(tmp_path) as other:
            assert not dead.exists()
            assert other.held_bytes() == 0
            living.put(KEY, b"abc")
        assert living.get(KEY) == b"abc"


def test_files_of_others_are_no_blocks(tmp_path: Path) -> None:
    with DiskKV(tmp_path) as store:
        store.put(KEY, b"abc")
        for name in ("notes.txt", "1", "1.x", "-1.0", ".1.0"):
            (tmp_path / "ada/v1/r1/1/l" / name).touch()
        assert list(store.keys("ada", "v1")) == [KEY]


def test_an_empty_file_is_corrupt_not_a_crash(tmp_path: Path) -> None:
    with DiskKV(tmp_path) as store:
        store.put(KEY, b"abc")
        (tmp_path / "ada/v1/r1/1/l/3.2").write_bytes(b"")
        with pytest.raises(BlockCorrupt):
            decode(store.get(KEY))


def test_a_folder_in_the_way_is_an_error_with_a_name(tmp_path: Path) -> None:
    with DiskKV(tmp_path) as store:
        (tmp_path / "ada").write_text("not a folder")
        with pytest.raises(StoreUnavailable, match="ada"):
            store.put(KEY, b"abc")
        assert not [p for p in (tmp_path / ".tmp").rglob("*") if p.is_file() and p.name != "lock"]


def test_holding_many_small_blobs_holds_no_files_open(tmp_path: Path) -> None:
    with DiskKV(tmp_path) as store:
        before = len(list(Path("/proc/self/fd").iterdir()))
        held = []
        for chunk in range(50):
            store.put(replace(KEY, chunk=chunk), b"abc")
            held.append(store.get(replace(KEY, chunk=chunk)))
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_store_whose_folder_was_taken_away_is_unavailable(tmp_path: Path) -> None:
    with DiskKV(tmp_path / "kv") as store:
        store.put(KEY, b"abc")
        shutil.rmtree(tmp_path / "kv" / ".tmp")
        for step in (lambda: store.put(KEY, b"new"), lambda: store.delete_video("ada", "v1")):
            with pytest.raises(StoreUnavailable):
                step()
        assert store.get(KEY) == b"abc"


FULL = """
import resource, sys
from x2l_cluster.errors import StoreFull
from x2l_cluster.kv.disk import DiskKV
from x2l_cluster.types import BlockKey
key = BlockKey(tenant="ada", video="v1", recipe="r1", epoch=1, kind="l", chunk=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with DiskKV(sys.argv[1]) as store:
    store.put(key, bytes(50_000))
    try:
        store.put(key, bytes(200_000))
    except StoreFull as error:
        assert store.get(key) == bytes(50_000) and store.held_bytes() == 50_000
        print(error)
"""


def test_no_room_left_is_store_full_and_leaves_nothing_half(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert "no room left" in done.stdout
    assert names(tmp_path) == ["ada", "ada/v1", "ada/v1/r1", "ada/v1/r1/1", "ada/v1/r1/1/l", "ada/v1/r1/1/l/0.0"]
