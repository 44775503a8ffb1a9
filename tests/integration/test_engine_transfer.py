"""Indexes out of one place and into another: every pair of stores, again, half-way, and what must not get in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engines import SMALL, calibration, engine, mosaic
from tests.tiny import qwen3_vl, two_pass
from x2l_cluster.engine import Generation, VideoEngine
from x2l_cluster.engine.transfer import Imported, export_index, import_index
from x2l_cluster.errors import (
    BadArchive,
    BlockMissing,
    InvalidInput,
    ManifestConflict,
    ModelMismatch,
    StoreFull,
    UnknownVideo,
    VideoFileNotFound,
)
from x2l_cluster.kv.memory import MemoryKV
from x2l_cluster.types import IndexStatus, Kind, Manifest

QUESTION = "What code is shown with the red star?"
WRITE = Generation(max_tokens=6, ignore_stop_ids=True)
PLACES = ("memory", "disk", "server")
Opener = Callable[[str], VideoEngine]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mosaic(tmp_path_factory.mktemp("film") / "film.mp4", 16)


@pytest.fixture(scope="module")
def exported(film: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[VideoEngine, Manifest, Path]]:
    """An engine with the film, and its index in a file."""
    path = tmp_path_factory.mktemp("out") / "film.x2l"
    with engine(stripe_bytes=8 << 10) as x2l:
        manifest = x2l.index(film, video="film", **SMALL)
        assert any(ref.stripes > 1 for row in manifest.chunks for ref in row.blocks.values())
        assert any(ref.packed for row in manifest.chunks for ref in row.blocks.values())
        export_index(x2l.stores, manifest, path)
        yield x2l, manifest, path


@pytest.fixture
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    with ExitStack() as stack:

        def opener(place: str) -> VideoEngine:
            server = request.getfixturevalue("empty_valkey") if place == "server" else ""
            store = {
                "memory": "memory:",
                "disk": f"disk:{tmp_path / 'store'}",
                "server": f"tiers:memory:|{server}|disk:{tmp_path / 'store'}",
            }[place]
            return stack.enter_context(engine(store))

        yield opener


def taken_in(x2l: VideoEngine, path: Path, **options: object) -> Imported:
    return import_index(x2l.stores, x2l.lm, path, **{"tenant": "local", **options})  # type: ignore[arg-type]


def sums(manifest: Manifest) -> list[dict[str, str]]:
    return [{kind: ref.checksum for kind, ref in row.blocks.items()} for row in manifest.chunks]


def nothing(x2l: VideoEngine, tenant: str = "local") -> bool:
    return not x2l.videos(tenant=tenant) and not list(x2l.stores.kv.videos())


@pytest.mark.parametrize("place", PLACES)
def test_what_is_taken_in_answers_as_it_did_and_can_be_taken_out_again(
    exported: tuple[VideoEngine, Manifest, Path], opened: Opener, place: str, tmp_path: Path
) -> None:
    there, manifest, path = exported
    x2l = opened(place)
    told: list[tuple[int, int | None]] = []
    done = taken_in(x2l, path, told=lambda n, of: told.append((n, of)))
    assert done.new and done.manifest.status is IndexStatus.READY and done.manifest.video == "film"
    assert told == [(n + 1, 4) for n in range(4)]
    assert sums(done.manifest) == sums(manifest) and done.manifest.recipe == manifest.recipe
    assert set(x2l.stores.kv.keys("local", "film")) == done.manifest.named
    for detail in ("k=2", "fine", "coarse"):
        here, before = (e.ask("film", QUESTION, detail=detail, generation=WRITE) for e in (x2l, there))
        assert (here.text, here.degraded, here.plan.fine) == (before.text, False, before.plan.fine)
    again = taken_in(x2l, path)
    assert (again.new, again.manifest) == (False, x2l.manifest("film"))
    export_index(x2l.stores, x2l.manifest("film"), tmp_path / "again.x2l")
    other = opened("memory")
    assert sums(taken_in(other, tmp_path / "again.x2l", tenant="anna", video="clip").manifest) == sums(manifest)
    assert other.manifest("clip", tenant="anna").tenant == "anna" and other.videos() == []
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix == ".x2l" or ".part" in p.name) == ["again.x2l"]


def test_the_file_that_was_indexed_is_known_where_its_index_was_taken_in(
    exported: tuple[VideoEngine, Manifest, Path], opened: Opener, film: Path
) -> None:
    x2l = opened("memory")
    taken_in(x2l, exported[2], video="clip")
    seen: list[object] = []
    assert x2l.index(film, progress=seen.append, **SMALL).video == "clip" and not seen
    assert not taken_in(x2l, exported[2]).new, "by its content it is that video"


def test_what_a_store_has_lost_is_left_out_but_never_what_is_needed(film: Path, opened: Opener, tmp_path: Path) -> None:
    with engine() as x2l:
        manifest = x2l.index(film, video="film", **SMALL)
        coarse = x2l.ask("film", QUESTION, detail="coarse", generation=WRITE).text
        fine = [key for key in x2l.stores.kv.keys("local", "film") if key.kind == Kind.L]
        x2l.stores.kv.delete(key for key in fine if key.chunk in (1, 2))
        assert export_index(x2l.stores, manifest, tmp_path / "half.x2l").coarse == 2
        x2l.decay("film")
        assert export_index(x2l.stores, x2l.manifest("film"), tmp_path / "coarse.x2l").coarse == len(manifest.chunks)
        x2l.stores.kv.delete(key for key in x2l.stores.kv.keys("local", "film") if key.kind.startswith("h"))
        with pytest.raises(BlockMissing):
            export_index(x2l.stores, x2l.manifest("film"), tmp_path / "none.x2l")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["coarse.x2l", "half.x2l"]
        with pytest.raises(InvalidInput, match="cannot be written"):
            export_index(x2l.stores, manifest, tmp_path / "no" / "such" / "folder.x2l")
    here = opened("memory")
    taken_in(here, tmp_path / "half.x2l", video="half", tenant="anna")
    assert [Kind.L in row.blocks for row in here.manifest("half", tenant="anna").chunks] == [True, False, False, True]
    taken_in(here, tmp_path / "coarse.x2l")
    answer = here.ask("film", QUESTION, detail="fine", generation=WRITE)
    assert (answer.text, answer.degraded) == (coarse, False) and "not kept" in (answer.plan.note or "")


class Full(MemoryKV):
    """Takes so many blobs, then no more."""

    left = 12

    def put(self, key, blob):  # type: ignore[no-untyped-def]
        self.left -= 1
        if self.left < 0:
            raise StoreFull("no more")
        super().put(key, blob)


def test_what_does_not_become_whole_leaves_nothing(
    exported: tuple[VideoEngine, Manifest, Path], opened: Opener
) -> None:
    x2l = opened("memory")
    full = Full()
    with pytest.raises(StoreFull):
        import_index(replace(x2l.stores, kv=full), x2l.lm, exported[2], tenant="local")
    assert x2l.videos() == [] and list(full.videos()) == []
    assert taken_in(x2l, exported[2]).new


@pytest.mark.parametrize("place", PLACES)
def test_killed_half_way_it_goes_on_and_is_whole(
    exported: tuple[VideoEngine, Manifest, Path], opened: Opener, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x2l = opened(place)

    class Killed(BaseException):
        pass

    def dies(done: int, of: int | None) -> None:
        if done == 2:
            raise Killed

    with monkeypatch.context() as dead:
        dead.setattr("x2l_cluster.engine.transfer._Import._withdraw", lambda *_: None)  # nobody is there to do it
        with pytest.raises(Killed):
            taken_in(x2l, exported[2], told=dies)
    (record,) = x2l.videos()
    assert (record.status, record.chunks) == (IndexStatus.INDEXING, 2)
    done = taken_in(x2l, exported[2])
    assert done.new and sums(done.manifest) == sums(exported[1])
    assert set(x2l.stores.kv.keys("local", "film")) == done.manifest.named
    assert not x2l.ask("film", QUESTION, detail="fine", generation=WRITE).degraded


def test_what_must_not_get_in(exported: tuple[VideoEngine, Manifest, Path], opened: Opener, tmp_path: Path) -> None:
    path = exported[2]
    x2l = opened("disk")
    with pytest.raises(VideoFileNotFound):
        taken_in(x2l, tmp_path / "none.x2l")
    with pytest.raises(InvalidInput, match="video id"):
        taken_in(x2l, path, video="../film")
    hurt = tmp_path / "hurt.x2l"
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    for damaged in (data, path.read_bytes()[:-5], b"", b"x" * 100):
        hurt.write_bytes(damaged)
        with pytest.raises(BadArchive):
            taken_in(x2l, hurt)
    for lm in (qwen3_vl(1), two_pass(0)):
        with VideoEngine(lm, x2l.stores, calibration=calibration(lm)) as other, pytest.raises(ModelMismatch):
            taken_in(other, path)
    assert nothing(x2l)


def test_what_is_here_is_not_overwritten(
    exported: tuple[VideoEngine, Manifest, Path], opened: Opener, film: Path, tmp_path: Path
) -> None:
    x2l = opened("memory")
    other = x2l.index(mosaic(tmp_path / "other.mp4", 16, seed=7), video="film", **SMALL)
    with pytest.raises(InvalidInput, match="taken by another file"):
        taken_in(x2l, exported[2])
    assert taken_in(x2l, exported[2], video="clip").new
    assert x2l.manifest("film") == other
    with engine(lm=Shifted.of(0)) as shifted:  # the same weights by name, other numbers
        manifest = shifted.index(film, video="clip", **SMALL)
        export_index(shifted.stores, manifest, tmp_path / "shifted.x2l")
    before = x2l.manifest("clip")
    with pytest.raises(ManifestConflict, match="with other blocks"):
        taken_in(x2l, tmp_path / "shifted.x2l")
    assert x2l.manifest("clip") == before
    with pytest.raises(UnknownVideo):
        x2l.manifest("shifted")


def test_what_grows_here_is_left_to_grow(
    exported: tuple[VideoEngine, Manifest, Path], opened: Opener, tmp_path: Path
) -> None:
    x2l = opened("memory")
    here = taken_in(x2l, exported[2]).manifest
    assert here.source is not None
    growing = x2l.stores.state.grow(
        "local", "film", here.recipe.digest, revision=here.revision, kept=2, info=here.info, source=here.source
    )
    with pytest.raises(ManifestConflict, match="grows"):
        taken_in(x2l, exported[2])
    with pytest.raises(ManifestConflict, match="being indexed"):
        export_index(x2l.stores, growing, tmp_path / "growing.x2l")
    assert x2l.manifest("film") == growing


class Shifted:
    """A model that calls itself as another does, as one on other hardware might give other numbers."""

    @staticmethod
    def of(seed: int):  # type: ignore[no-untyped-def]
        lm = qwen3_vl(seed + 5)
        lm._spec = replace(lm.spec, weights=f"tiny{seed}")
        return lm
