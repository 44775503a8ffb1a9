"""kill -9 while blocks are written and sealed: whatever is visible afterwards is whole.

The writer is a real process, killed at many moments; it writes blocks large enough for the blow to fall inside one.
"""

from __future__ import annotations

import random
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from x2l_cluster.errors import X2LError
from x2l_cluster.kv.codec import ref_of, unpack
from x2l_cluster.kv.open import open_kv
from x2l_cluster.state.open import open_state
from x2l_cluster.types import Recipe

WRITER = """
import sys
import torch
from x2l_cluster.kv.codec import pack, ref_of
from x2l_cluster.kv.open import open_kv
from x2l_cluster.state.open import open_state
from x2l_cluster.types import BlockKey, ChunkRow, Recipe, Span, VideoInfo

url = sys.argv[1]
recipe = Recipe(family="tiny", weights="w1")
noise = torch.randint(0, 255, (8 << 20,), dtype=torch.uint8)
with open_kv(url) as kv, open_state(url) as state:
    info = VideoInfo(duration_s=1.0, width=1, height=1, fps=1.0)
    manifest = state.begin("ada", "v1", recipe, info)
    print("begun", manifest.epoch, flush=True)
    for index in range(len(manifest.chunks), 10_000):
        refs = {}
        for kind in ("h", "l"):
            key = BlockKey(
                tenant="ada", video="v1", recipe=recipe.digest, epoch=manifest.epoch, kind=kind, chunk=index
            )
            blob = pack({"noise": noise}, {"chunk": index}, key)
            refs[kind] = ref_of(blob)
            print("putting", flush=True)
            kv.put(key, blob)
        row = ChunkRow(
            index=index, span=Span(start_s=index, end_s=index + 1), frames=1,
            position_start=0.0, position_end=1.0, raw_entries=1, blocks=refs,
        )
        state.seal("ada", "v1", recipe.digest, manifest.epoch, row)
        print("sealed", flush=True)
"""


def kill_after(url: str, lines: int, delay_s: float) -> int:
    """Runs a writer until it has said so much (most of it before a put), waits for a moment of its work, kills it.

    Returns how many chunks it sealed.
    """
    with subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=-1, text=True) as writer:
        assert writer.stdout is not None
        said = [writer.stdout.readline() for _ in range(lines)]
        assert said[-1], "the writer ended by itself"
        select.select([], [], [], delay_s)  # where in its work the blow falls
        writer.kill()
        said += writer.stdout.readlines()
    return said.count("sealed\n")


@pytest.fixture(params=["disk", "remote", "routed"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    makers: dict[str, Callable[[], str]] = {
        "disk": lambda: f"disk:{tmp_path}",
        "remote": lambda: str(request.getfixturevalue("empty_valkey")),
        "routed": lambda: f"l={request.getfixturevalue('empty_valkey')};disk:{tmp_path}",
    }
    return makers[request.param]()


def check_and_continue(url: str, seed: int) -> None:
    dice = random.Random(seed)
    digest = Recipe(family="tiny", weights="w1").digest
    sealed, epochs = 0, []
    for _ in range(3):
        sealed += kill_after(url, dice.randint(1, 8), dice.random() * 0.006)
        with open_kv(url) as kv, open_state(url) as state:
            manifest = state.manifest("ada", "v1", digest)
            epochs.append(manifest.epoch)
            assert sealed <= len(manifest.chunks) <= sealed + 1  # killed between sealing and saying so
            sealed = len(manifest.chunks)
            for row in manifest.chunks:
                for ref in row.blocks.values():
                    key = manifest.key(ref, row.index)
                    _, meta = unpack(kv.get(key), key, ref)
                    assert meta == {"chunk": row.index}
            visible = list(kv.keys("ada", "v1"))
            for key in visible:
                blob = kv.get(key)
                unpack(blob, key, ref_of(blob))
            assert kv.held_bytes() == sum(len(kv.get(key)) for key in visible)
    assert epochs == sorted(set(epochs))
    with open_kv(url) as kv, open_state(url) as state:
        state.delete("ada", "v1")
        kv.delete_video("ada", "v1")
        assert kv.held_bytes() == 0
        with pytest.raises(X2LError):
            state.manifest("ada", "v1")


def left_on_disk(url: str) -> list[str]:
    if "disk:" not in url:
        return []
    root = Path(url.rpartition("disk:")[2])
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def test_whatever_is_visible_after_a_kill_is_whole(url: str) -> None:
    check_and_continue(url, seed=1)
    assert left_on_disk(url) in ([], ["kv/.tmp/lock", "state/ada/.epoch", "state/ada/.lock"])


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 22))
def test_whatever_is_visible_after_many_kills_is_whole(url: str, seed: int) -> None:
    check_and_continue(url, seed)
