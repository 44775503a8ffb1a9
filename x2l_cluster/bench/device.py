"""How fast blobs of the host arena reach the device, beside a copy from ordinary memory and from pinned memory.

A plan of fine blocks lies in the arena as its stripes do. Each path moves the same bytes stripe by stripe into one warm
device buffer, in turns, so that whatever else the machine does hits all of them alike. Bytes are verified.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch

from x2l_cluster.errors import InvalidInput, X2LError
from x2l_cluster.kv.host import HostKV, remove
from x2l_cluster.types import BlockKey

STRIPE_BYTES = 768 << 10
STRIPES = 64
"""A plan of 48 MiB: a few fine chunks of an 8-billion-parameter model at half precision, or many at int4."""

Copy = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRow:
    """One path: the median of its turns and their quartiles."""

    path: str
    gbps: float
    low_gbps: float
    high_gbps: float


def run_device(*, repeats: int = 60, stripes: int = STRIPES, stripe_bytes: int = STRIPE_BYTES) -> dict[str, Any]:
    """Measures on the current CUDA device.

    Returns:
        ``{"suite": "device", "rows": [DeviceRow …], "ratios": {"arena_vs_pageable", "arena_vs_pinned"}, "setup"}``.

    Raises:
        InvalidInput: there is no CUDA device.
        X2LError: a path moved other bytes than those it was given.
    """
    if not torch.cuda.is_available():
        raise InvalidInput("this measures copies to a GPU, and torch sees none here: run it on a machine with one")
    shared = Path("/dev/shm")
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())  # the arena lends read-only memory, which nothing writes to
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None))
        arena = Path(folder) / "arena"
        stack.callback(remove, arena)
        store = stack.enter_context(HostKV(arena, budget_bytes=2 * stripes * stripe_bytes, prefault=True))
        keys = [BlockKey(tenant="bench", video="v", recipe="r", epoch=1, kind="l", chunk=n) for n in range(stripes)]
        values = [np.random.default_rng(n).integers(0, 256, stripe_bytes, np.uint8) for n in range(stripes)]
        for key, value in zip(keys, values, strict=True):
            store.put(key, value.data)
        turns = _turns(store, keys, values, repeats)
    moved = stripes * stripe_bytes
    return {
        "suite": "device",
        "rows": [asdict(_row(path, moved, times)) for path, times in turns.items()],
        "ratios": {
            "arena_vs_pageable": _ratio(turns, "arena", "pageable memory"),
            "arena_vs_pinned": _ratio(turns, "arena", "pinned memory"),
        },
        "setup": {
            "device": torch.cuda.get_device_name(), "torch": torch.__version__, "stripes": stripes,
            "stripe_bytes": stripe_bytes, "repeats": repeats,
        },
    }  # fmt: skip


def _turns(
    store: HostKV, keys: list[BlockKey], values: list[np.ndarray[Any, Any]], repeats: int
) -> dict[str, list[float]]:
    target = torch.empty(len(values), len(values[0]), dtype=torch.uint8, device="cuda")
    pinned = list(torch.from_numpy(np.stack(values)).pin_memory())
    paths: dict[str, Copy] = {
        "pageable memory": lambda: _copy(target, [torch.from_numpy(value) for value in values]),
        "pinned memory": lambda: _copy(target, pinned),
    }
    before = _measure({"arena, not registered": lambda: _from_arena(target, store, keys)}, target, values, repeats)
    store.register()
    held = [_tensor(store.get(key)) for key in keys]
    paths["arena"] = lambda: _copy(target, held)
    paths["arena, looked up anew"] = lambda: _from_arena(target, store, keys)
    return before | _measure(paths, target, values, repeats)


def _copy(target: torch.Tensor, sources: list[torch.Tensor]) -> None:
    for place, source in zip(target, sources, strict=True):
        place.copy_(source, non_blocking=True)


def _from_arena(target: torch.Tensor, store: HostKV, keys: list[BlockKey]) -> None:
    """Look up, lease and copy, stripe by stripe; the leases end when the copies have."""
    held = []
    for place, key in zip(target, keys, strict=True):
        held.append(_tensor(store.get(key)))
        place.copy_(held[-1], non_blocking=True)
    torch.cuda.current_stream().synchronize()


def _tensor(view: memoryview) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(view, np.uint8))


def _measure(
    paths: Mapping[str, Copy], target: torch.Tensor, values: list[np.ndarray[Any, Any]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of every turn of every path; the order changes from turn to turn."""
    times: dict[str, list[float]] = {path: [] for path in paths}
    order = list(paths)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for turn in range(-3, repeats):  # the first ones warm up
        order = order[1:] + order[:1]
        for path in order:
            target.zero_()
            torch.cuda.synchronize()
            begin.record()
            paths[path]()
            end.record()
            torch.cuda.synchronize()
            if turn >= 0:
                times[path].append(begin.elapsed_time(end) / 1e3)
            if turn < 0 and not np.array_equal(target.cpu().numpy(), np.stack(values)):
                raise X2LError(f"{path} moved other bytes than it was given: the benchmark is void")
    return times


def _row(path: str, moved: int, times: list[float]) -> DeviceRow:
    speeds = [moved / seconds / 1e9 for seconds in times]
    low, _, high = quantiles(speeds, n=4, method="inclusive") if len(speeds) > 1 else speeds * 3
    return DeviceRow(path=path, gbps=round(median(speeds), 2), low_gbps=round(low, 2), high_gbps=round(high, 2))


def _ratio(turns: Mapping[str, list[float]], path: str, other: str) -> float:
    pairs = zip(turns[path], turns[other], strict=True)
    return round(median(theirs / ours for ours, theirs in pairs), 2)


if __name__ == "__main__":
    json.dump(run_device(), sys.stdout, indent=1)
