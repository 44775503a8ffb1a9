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
from tests.tiny import qwen3_vl

# 12 KB an entry, so that whatever is kept of every chunk shows
WIDE = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [12, 10, 10], "mrope_interleaved": True}
kept = []

me = psutil.Process()
peak = 0

def pss_of(process):
    try:
        return process.memory_full_info().pss
    except psutil.NoSuchProcess:  # the decoder has just ended
        return 0

def look(event):
    global peak
    peak = max(peak, sum(pss_of(p) for p in [me, *me.children(recursive=True)]))

watch = kept.append if sys.argv[3] == "leak" else lambda done: None
with engine(f"disk:{sys.argv[1]}", lm=qwen3_vl(0, rope_parameters=ROPE, **WIDE)) as x2l:
    manifest = x2l.index(sys.argv[2], progress=look, watch=watch, height=32, width=32, memory_entries=512)
print(json.dumps({"peak": peak, "chunks": len(manifest.chunks)}))
"""


def film(path: Path, seconds: int) -> Path:
    """Every frame is looked at, and an hour of them is 400 MB: a decoder that runs ahead of the model shows."""
    return mosaic(path, seconds, fps=1.0, side=48)


def peak_pss(film: Path, store: Path, *, leak: bool = False) -> dict[str, int]:
    command = [sys.executable, "-c", INDEX, str(store), str(film), "leak" if leak else ""]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=280)
    return json.loads(done.stdout.splitlines()[-1])


def test_an_hour_takes_hardly_more_memory_than_two_minutes(tmp_path):
    """Peak PSS of the whole process tree, decoder included; the prefill memory is full well before the hour is over."""
    short = peak_pss(film(tmp_path / "short.mp4", 120), tmp_path / "a")
    long = peak_pss(film(tmp_path / "long.mp4", 3600), tmp_path / "b")
    assert (short["chunks"], long["chunks"]) == (8, 225)
    assert long["peak"] < 1.3 * short["peak"], (short, long)


def test_the_measure_sees_what_is_kept_of_every_chunk(tmp_path):
    short = peak_pss(film(tmp_path / "short.mp4", 120), tmp_path / "a")
    leaking = peak_pss(film(tmp_path / "middle.mp4", 1200), tmp_path / "b", leak=True)
    assert leaking["peak"] > 1.3 * short["peak"], (short, leaking)
