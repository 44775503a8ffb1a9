"""What `x2l capacity` prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from x2l_cluster.cli.show import emit, line
from x2l_cluster.cli.text import size

if TYPE_CHECKING:
    from x2l_cluster.service.capacity import Capacity


def capacity(found: Capacity, *, as_json: bool) -> None:
    if as_json:
        emit(asdict(found))
        return
    line(f"kv servers      {size(found.kv_bytes)} of blocks, memory limits of {size(found.kv_limit_bytes)} in all")
    line(f"durable volume  {size(found.disk_bytes)}, and the originals")
    line(f"answer worker   {size(found.host_bytes)} of host memory")
    line(f"a question      moves {size(found.question_bytes)}")
    gpus = "unknown without --chunk-s" if found.index_gpus is None else str(found.index_gpus)
    line(f"GPUs to index   {gpus}")
