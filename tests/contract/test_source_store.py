"""What every source store promises, over a directory and over an object store."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from x2l_cluster.errors import EmptyVideo, InvalidInput, SourceMissing, StoreUnavailable, VideoFileNotFound
from x2l_cluster.types import SourceRef
from x2l_cluster.video.sources import FsspecSourceStore, SourceStore

CONTENT = os.urandom(3 << 20)


@pytest.fixture(params=["directory", "file url", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {
        "directory": str(tmp_path / "sources"),
        "file url": f"file://{tmp_path}/sources",
        "memory": f"memory://{tmp_path.name}-{request.node.nodeid.__hash__()}/sources",
    }[request.param]


@pytest.fixture
def store(place: str) -> SourceStore:
    return FsspecSourceStore(place)


@pytest.fixture
def kept(place: str) -> Callable[[], list[str]]:
    """Names of all files in the store, whatever they are."""
    fs, root = fsspec.core.url_to_fs(place)
    return lambda: sorted(path.removeprefix(root).strip("/") for path in fs.find(root))


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "my lecture.mp4"
    path.write_bytes(CONTENT)
    return path


def test_what_is_put_can_be_read_as_a_local_file(store: SourceStore, video: Path) -> None:
    ref = store.put("local", video)
    assert ref == SourceRef(id=hashlib.sha256(CONTENT).hexdigest(), name="my lecture.mp4", size_bytes=len(CONTENT))
    assert store.exists("local", ref)
    with store.open_local("local", ref) as path:
        assert path.read_bytes() == CONTENT


def test_a_stream_can_be_put(store: SourceStore) -> None:
    ref = store.put("local", io.BytesIO(CONTENT), name="upload.mp4")
    assert (ref.name, ref.size_bytes) == ("upload.mp4", len(CONTENT))
    with store.open_local("local", ref) as path:
        assert path.read_bytes() == CONTENT
    assert store.put("local", io.BytesIO(b"other")).name


def test_the_same_content_is_kept_once(store: SourceStore, video: Path, kept: Callable[[], list[str]]) -> None:
    first = store.put("local", video)
    second = store.put("local", io.BytesIO(CONTENT), name="again.mp4")
    assert first.id == second.id
    assert kept() == [f"local/{first.id}"]


def test_deleting_leaves_nothing(store: SourceStore, video: Path, kept: Callable[[], list[str]]) -> None:
    ref = store.put("local", video)
    store.delete("local", ref)
    store.delete("local", ref)
    assert not store.exists("local", ref)
    assert kept() == []
    with pytest.raises(SourceMissing, match="upload the video again"), store.open_local("local", ref):
        pass
    assert store.put("local", video) == ref


def test_a_folder_that_goes_with_the_last_other_source_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FsspecSourceStore(tmp_path / "sources")
    make, made = store._fs.makedirs, 0

    def taken_along(path: str, exist_ok: bool = False) -> None:
        nonlocal made
        make(path, exist_ok=exist_ok)
        made += 1
        if made < 3:
            os.rmdir(path)

    monkeypatch.setattr(store._fs, "makedirs", taken_along)
    ref = store.put("local", io.BytesIO(b"film"))
    assert store.exists("local", ref) and made == 3


def test_one_tenant_never_sees_or_deletes_anothers_source(store: SourceStore, video: Path) -> None:
    ref = store.put("alice", video)
    assert not store.exists("bob", ref)
    store.delete("bob", ref)
    with pytest.raises(SourceMissing), store.open_local("bob", ref):
        pass
    assert store.exists("alice", ref)


@pytest.mark.parametrize("tenant", ["", "..", "a/b", "../alice", ".hidden"])
def test_tenants_cannot_leave_their_folder(tenant: str, store: SourceStore, video: Path) -> None:
    with pytest.raises(InvalidInput):
        store.put(tenant, video)


@pytest.mark.parametrize("wrong", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_only_a_digest_names_a_source(wrong: str, store: SourceStore) -> None:
    with pytest.raises(InvalidInput, match="no source id"):
        store.exists("local", SourceRef(id=wrong, name="x", size_bytes=1))


def test_nothing_to_keep_is_an_error(store: SourceStore, tmp_path: Path, kept: Callable[[], list[str]]) -> None:
    with pytest.raises(EmptyVideo):
        store.put("local", io.BytesIO(b""), name="empty.mp4")
    with pytest.raises(VideoFileNotFound):
        store.put("local", tmp_path / "missing.mp4")
    assert kept() == []


class Breaks(io.BytesIO):
    """An upload whose connection is lost half-way."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() >= 2 << 20:
            raise ConnectionResetError("peer is gone")
        return super().read(size)


def test_an_upload_that_breaks_off_leaves_nothing(store: SourceStore, kept: Callable[[], list[str]]) -> None:
    with pytest.raises(StoreUnavailable, match="peer is gone"):
        store.put("local", Breaks(CONTENT), name="half.mp4")
    assert kept() == []


def test_a_source_is_invisible_until_it_is_whole(store: SourceStore, kept: Callable[[], list[str]]) -> None:
    ref = SourceRef(id=hashlib.sha256(CONTENT).hexdigest(), name="x", size_bytes=len(CONTENT))
    seen: list[bool] = []

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            seen.append(store.exists("local", ref))
            return super().read(size)

    store.put("local", Watched(CONTENT))
    assert len(seen) >= 4
    assert not any(seen)
    assert store.exists("local", ref)


def test_puts_of_the_same_content_at_once_all_succeed(store: SourceStore, kept: Callable[[], list[str]]) -> None:
    refs: list[SourceRef] = []
    threads = [threading.Thread(target=lambda: refs.append(store.put("local", io.BytesIO(CONTENT)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refs) == 4
    assert kept() == [f"local/{refs[0].id}"]
