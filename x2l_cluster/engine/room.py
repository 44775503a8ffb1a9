"""What questions take on the device, and who may have it: nothing is begun that would not fit."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import torch

from x2l_cluster.engine.turns import Turns
from x2l_cluster.errors import ExceedsDevice
from x2l_cluster.models import VideoLM
from x2l_cluster.types import Kind, Manifest

SHARED: Final = 2
"""A coarse entry is there as a page and once more where pages are laid out for all who ask about the video."""
OWN: Final = 3
"""One that only its question sees is there as a page, and in a row that may be half empty."""
SHARE: Final = 0.8
"""Of what is free on the device; the rest is for activations and fragments."""
MEMORY: Final = Path("/proc/meminfo")
CONTAINER: Final = Path("/sys/fs/cgroup/memory.max")


class Room:
    """Bytes of the device, given in the order they are asked for, so that a large question is not passed for ever.

    Raises ExceedsDevice where a question could never fit.

    Args:
        total_bytes: what all questions together may take.
    """

    def __init__(self, lm: VideoLM, total_bytes: int) -> None:
        spec = lm.spec
        self._entry_bytes = 2 * spec.layers * spec.kv_heads * spec.head_dim * lm.dtype.itemsize
        self._total = total_bytes
        self._taken = 0
        self._line = Turns()
        self._moved = threading.Condition()

    def needs(self, manifest: Manifest, fine: Collection[int] = (), tokens: int = 0) -> int:
        """Bytes of a question with those chunks fine and so many tokens of its own. Raises ExceedsDevice."""
        coarse = sum(row.blocks[Kind.H].entries for row in manifest.chunks)
        own = tokens + sum(
            row.blocks[Kind.L].entries for row in manifest.chunks if row.index in fine and Kind.L in row.blocks
        )
        size = (SHARED * coarse + OWN * own) * self._entry_bytes
        if size > self._total:
            todo = (
                "ask for less detail (coarse, k or a budget)"
                if fine
                else "index it with a coarser recipe (coarse.pool, fewer frames a second) or a part of it"
            )
            raise ExceedsDevice(
                f"video {manifest.video} would take {size >> 20} MiB of the device's {self._total >> 20} MiB with "
                f"{len(fine)} of {len(manifest.chunks)} chunks fine: {todo}"
            )
        return size

    def fitting(self, size: int, wanted: int) -> int:
        """How many of so many things of this size fit at once; at least one."""
        return max(1, min(wanted, self._total // max(1, size)))

    def take(self, size: int, wanted: Callable[[], bool]) -> bool:
        """Waits until there is room. False, with nothing taken, once it is not ``wanted`` any more."""
        with self._line, self._moved:
            self._moved.wait_for(lambda: not wanted() or self._taken + size <= self._total)
            if not wanted():
                return False
            self._taken += size
            return True

    def give(self, size: int) -> None:
        with self._moved:
            self._taken -= size
            self._moved.notify_all()

    def look(self) -> None:
        """Whoever waits asks again whether it is wanted."""
        with self._moved:
            self._moved.notify_all()

    @property
    def taken_bytes(self) -> int:
        return self._taken


def free_bytes(device: torch.device) -> int:
    """What the questions on a device may take together."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * SHARE)
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if MEMORY.exists() and (found := re.search(r"^MemAvailable:\s+(\d+) kB", MEMORY.read_text(), re.MULTILINE)):
        free = int(found[1]) << 10
    if CONTAINER.exists() and (text := CONTAINER.read_text().strip()).isdigit():
        free = min(free, int(text))
    return int(free * SHARE)
