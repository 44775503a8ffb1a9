"""Several processes and one folder: epochs exclude each other, nothing is lost, nothing is written twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.contract.test_state_store import RECIPE
from x2l_cluster.state.disk import DiskState

WORKER = """
import sys
from x2l_cluster.errors import StaleEpoch
from x2l_cluster.state.disk import DiskState
from x2l_cluster.types import BlockRef, ChunkRow, Recipe, Span, VideoInfo

recipe = Recipe(family="tiny", weights="w1")
info = VideoInfo(duration_s=60.0, width=1, height=1, fps=1.0)
lost = 0
with DiskState(sys.argv[1]) as state:
    sys.stdin.read(1)
    while True:
        mine = state.begin("ada", "v1", recipe, info)
        print("epoch", mine.epoch)
        state.bind("ada", "c1", f"v{mine.epoch}")
        index = len(mine.chunks)
        try:
            while index < 60:
                ref = BlockRef(kind="l", epoch=mine.epoch, size_bytes=1, checksum="0", entries=1)
                row = ChunkRow(
                    index=index, span=Span(start_s=index, end_s=index + 1), frames=1, position_start=0.0,
                    position_end=1.0, raw_entries=1, blocks={"l": ref},
                )
                state.seal("ada", "v1", recipe.digest, mine.epoch, row)
                print("sealed", index)
                index += 1
            break
        except StaleEpoch:
            lost += 1
            if lost == 5:
                break
"""


def test_processes_that_fight_over_a_video_leave_one_history(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)], stdin=-1, stdout=-1, text=True)
        for _ in range(3)
    ]
    outputs = []
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        with worker:
            outputs.append(worker.communicate(timeout=60)[0].split("\n"))
            assert worker.returncode == 0
    said = [line for lines in outputs for line in lines if line]
    epochs = [line for line in said if line.startswith("epoch")]
    sealed = [line for line in said if line.startswith("sealed")]
    assert len(set(epochs)) == len(epochs)
    assert len(set(sealed)) == len(sealed)
    with DiskState(tmp_path) as state:
        final = state.manifest("ada", "v1", RECIPE.digest)
        assert [row.index for row in final.chunks] == list(range(len(sealed)))
        written = [row.blocks["l"].epoch for row in final.chunks]
        assert written == sorted(written)
        assert state.find("ada", "c1") in {f"v{line.split()[1]}" for line in epochs}
