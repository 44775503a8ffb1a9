"""What only the manifests on disk have: leftovers, and damage to their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.test_state_store import INFO, RECIPE, begin, row, seal
from x2l_cluster.errors import ManifestConflict, ManifestCorrupt
from x2l_cluster.state.disk import DiskState


def test_deleted_manifests_leave_only_the_counter(tmp_path: Path) -> None:
    with DiskState(tmp_path) as state:
        seal(state, begin(state), 0, 1)
        state.bind("ada", "c1", "v1")
        state.delete("ada", "v1")
    assert sorted(p.name for p in (tmp_path / "ada").iterdir()) == [".epoch", ".lock"]


def test_rows_written_but_never_published_are_overwritten(tmp_path: Path) -> None:
    with DiskState(tmp_path) as state:
        started = seal(state, begin(state), 0)
        folder = tmp_path / "ada/v1" / RECIPE.digest
        (log,) = folder.glob("rows-*")
        with log.open("ab") as file:
            file.write(b"half a record of a dead writer" * 10)
        (folder / "head.new").write_bytes(b"half a head")
        assert len(DiskState(tmp_path).manifest("ada", "v1").chunks) == 1
        sealed = seal(state, started, 1)
        assert DiskState(tmp_path).manifest("ada", "v1") == sealed
        assert sealed.chunks[1] == row(1, started.epoch)


@pytest.mark.parametrize("name", ["head", "rows-*"])
def test_damage_to_a_file_is_corrupt_never_a_wrong_manifest(tmp_path: Path, name: str) -> None:
    with DiskState(tmp_path) as state:
        seal(state, begin(state), 0, 1)
    (path,) = (tmp_path / "ada/v1" / RECIPE.digest).glob(name)
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        for hurt in (damaged, whole[:at]):
            path.write_bytes(hurt)
            with pytest.raises(ManifestCorrupt):
                DiskState(tmp_path).manifest("ada", "v1", RECIPE.digest)


def test_damage_to_the_counter_or_the_bindings_says_what_to_do(tmp_path: Path) -> None:
    with DiskState(tmp_path) as state:
        begin(state)
        state.bind("ada", "c1", "v1")
        (tmp_path / "ada/.epoch").write_text("many")
        with pytest.raises(ManifestCorrupt, match=r"\.epoch"):
            begin(state)
        (tmp_path / "ada/.content").write_bytes(b"\xc1")
        with pytest.raises(ManifestCorrupt, match=r"\.content"):
            state.find("ada", "c1")


def test_a_counter_that_was_lost_lets_nobody_in_under_an_old_epoch(tmp_path: Path) -> None:
    with DiskState(tmp_path) as state:
        begin(state)
        begin(state)
        (tmp_path / "ada/.epoch").unlink()
        with pytest.raises(ManifestConflict, match="counter"):
            state.begin("ada", "v1", RECIPE, INFO)


def test_an_interrupted_deletion_is_finished_by_the_next_writer(tmp_path: Path) -> None:
    with DiskState(tmp_path) as state:
        seal(state, begin(state), 0)
        (tmp_path / "ada/v1").rename(tmp_path / "ada/.trash-1")
        assert state.videos("ada") == []
        begin(state, "v2")
        assert not (tmp_path / "ada/.trash-1").exists()
