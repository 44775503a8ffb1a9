"""What a service needs for so many hours of video: the estimate of one video, times what is kept where."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from x2l_cluster.errors import InvalidInput
from x2l_cluster.messages import Estimate

HEADROOM: Final = 1.25
"""Memory limit of a kv server over its ``maxmemory``: buffers of clients, and what fragments."""
_DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Bytes, and GPUs.

    Attributes:
        kv_bytes: fine blocks in the kv servers, all together (``maxmemory``).
        kv_limit_bytes: what their memory limits must be for that.
        disk_bytes: coarse blocks and score indexes on the durable volume. Originals come beside.
        host_bytes: coarse blocks and score indexes that lie in an answer worker's arena, of the hours asked at a time.
        question_bytes: what a question moves over the network when none of it is near.
        index_gpus: that index the hours of a day within a day; None where no chunk was measured.
    """

    kv_bytes: int
    kv_limit_bytes: int
    disk_bytes: int
    host_bytes: int
    question_bytes: int
    index_gpus: int | None


def capacity(
    one: Estimate, *, hours: float, fine_hours: float, hot_hours: float, daily_hours: float, fine_chunks: int
) -> Capacity:
    """What it takes to keep ``hours`` of videos like the estimated one.

    Args:
        fine_hours: of them, those whose fine blocks are kept; the others are answered coarse until they are repaired.
        hot_hours: those that one answer worker is asked about at a time.
        daily_hours: that are indexed a day.
        fine_chunks: of a question's plan.

    Raises InvalidInput.
    """
    if not 0 <= fine_hours <= hours or not 0 <= hot_hours <= hours or daily_hours < 0 or fine_chunks < 0:
        raise InvalidInput(
            f"of {hours} hours of video between 0 and all are kept fine (got {fine_hours}) or asked at a time (got "
            f"{hot_hours}); hours a day and chunks of a plan are not below 0 (got {daily_hours}, {fine_chunks})"
        )
    of_one = 3600 / one.duration_s
    durable = one.coarse_bytes + one.score_bytes
    kv = math.ceil(one.fine_bytes * fine_hours * of_one)
    busy = None if one.index_s is None else one.index_s * daily_hours * of_one / _DAY_S
    return Capacity(
        kv_bytes=kv,
        kv_limit_bytes=math.ceil(kv * HEADROOM),
        disk_bytes=math.ceil(durable * hours * of_one),
        host_bytes=math.ceil(durable * hot_hours * of_one),
        question_bytes=math.ceil(one.fine_bytes / one.chunks * min(fine_chunks, one.chunks)),
        index_gpus=None if busy is None else math.ceil(busy),
    )
