"""Memory does not grow with the length of the video."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.engines import mosaic

INDEX = """
import json, sys
import psutil
from tests.engines import engine

me = psutil.Process()
peak = 0

def look(event):
    global peak
    pss = sum(p.memory_full_info().pss for p in [me, *me.children(recursive=True)])
    peak = max(peak, pss)

with engine(f"disk:{sys.argv[1]}") as x2l:
    manifest = x2l.index(sys.argv[2], progress=look, height=32, width=32)
print(json.dumps({"peak": peak, "chunks": len(manifest.chunks)}))
"""


def peak_pss(film: Path, store: Path) -> dict[str, int]:
    command = [sys.executable, "-c", INDEX, str(store), str(film)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=280)
    return json.loads(done.stdout.splitlines()[-1])


def test_an_hour_takes_hardly_more_memory_than_two_minutes(tmp_path):
    """Peak PSS of the whole process tree, decoder included; the prefill memory is full well before the hour is over."""
    short = peak_pss(mosaic(tmp_path / "short.mp4", 120), tmp_path / "a")
    long = peak_pss(mosaic(tmp_path / "long.mp4", 3600), tmp_path / "b")
    assert (short["chunks"], long["chunks"]) == (8, 225)
    assert long["peak"] < 1.3 * short["peak"], (short, long)
