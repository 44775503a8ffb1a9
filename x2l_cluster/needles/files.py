"""A script as a real H.264 file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from x2l_cluster.needles.backgrounds import Footage, load_footage
from x2l_cluster.needles.drawing import render
from x2l_cluster.needles.script import Script

_BATCH = 64


def write_mp4(
    script: Script,
    path: str | Path,
    *,
    size: int = 256,
    fps: int = 4,
    crf: int = 23,
    footage: str | Path | Footage | None = None,
    only_footage: bool = True,
) -> Path:
    """Render ``script`` and encode it: H.264, ``size`` x ``size`` square pixels, constant ``fps``, frame k at k/fps.

    With ``footage`` (a clip's path, or frames already loaded) the scenes lie over that clip, looped. The bytes
    depend on the encoder's version; the pictures do not. Returns ``path``.
    """
    import av

    if size % 2:
        raise ValueError(f"H.264 wants even sides; got size={size}")
    clip = footage if footage is None or isinstance(footage, Footage) else load_footage(footage, fps=fps)
    target = Path(path)
    times = [k / fps for k in range(round(script.duration_s * fps))]
    with av.open(str(target), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
        stream.time_base = Fraction(1, fps)
        for start in range(0, len(times), _BATCH):
            frames = render(
                script, times[start : start + _BATCH], size=size, footage=clip, only_footage=only_footage
            )  # fmt: skip
            for offset, picture in enumerate(frames.numpy()):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts = start + offset
                frame.time_base = Fraction(1, fps)
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return target
