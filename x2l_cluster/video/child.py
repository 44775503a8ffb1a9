"""The decoder process: ``python -m x2l_cluster.video.child``, started by :mod:`x2l_cluster.video.decode`.

It reads one request from standard input, writes messages to standard output, and exits when standard input closes or
its parent is gone. It imports no torch: it starts in a fraction of a second and weighs some tens of megabytes.
"""

from __future__ import annotations

import os
import queue
import resource
import selectors
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from x2l_cluster.errors import VideoError, X2LError
from x2l_cluster.types import Sampling
from x2l_cluster.video import wire
from x2l_cluster.video.reader import Fit, GaveUp, reader_factory, route
from x2l_cluster.video.sampling import Picks, pick, pick_moments
from x2l_cluster.video.timeline import Timeline, scan

_LEAD = 2
"""Batches decoded ahead of the parent, beside what the pipe holds."""

_BEAT_S = 0.5
"""Seconds between signs of life during long work."""

_ADDRESS_SPACE = 8 << 30
"""Bytes the process may map: several times what 8K video takes, so only a file that lies about its size hits it."""

Message = tuple[dict[str, Any], Any]


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    out = os.dup(1)
    os.dup2(2, 1)  # a library that prints must not garble the messages
    request, _ = wire.receive(0)
    threading.Thread(target=_die_with_parent, args=(os.getppid(),), daemon=True).start()
    messages: queue.Queue[Message | None] = queue.Queue(maxsize=_LEAD)
    writer = threading.Thread(target=_write, args=(out, messages))
    writer.start()
    try:
        _serve(request, messages)
    except (GaveUp, X2LError) as error:
        messages.put(({"type": "error", "code": error.code, "message": str(error)}, b""))
    except MemoryError:
        message = f"{request['path']}: not enough memory to decode it; set max_side, or scale it down"
        messages.put(({"type": "error", "code": VideoError.code, "message": message}, b""))
    finally:
        messages.put(None)
        writer.join()


def _serve(request: Mapping[str, Any], messages: queue.Queue[Message | None]) -> None:
    last = time.monotonic()

    def beat() -> None:
        nonlocal last
        if messages.empty() and time.monotonic() > last + _BEAT_S:
            last = time.monotonic()
            messages.put(({"type": "beat"}, b""))

    timeline = scan(request["path"], beat)
    picks = _picks(request, timeline)
    moments = request["moments_s"] is not None
    name = route(timeline, moments=moments) if request["reader"] == "auto" else request["reader"]
    opened = {"type": "opened", "reader": name, "info": asdict(timeline.info), "end_s": picks.end_s}
    messages.put((opened, picks.times_s.tobytes()))
    fit = Fit(max_side=request["max_side"], batch_bytes=request["batch_bytes"])
    reader = reader_factory(name)(Path(request["path"]), timeline, fit, beat)
    for batch in reader.read(picks.frames[request["start"] :]):
        messages.put(({"type": "batch", "shape": list(batch.shape)}, batch))
    messages.put(({"type": "end", "damage": reader.damage}, b""))
    reader.close()


def _picks(request: Mapping[str, Any], timeline: Timeline) -> Picks:
    duration_s, slack = timeline.info.duration_s, timeline.slack_s
    if request["moments_s"] is not None:
        return pick_moments(timeline.times_s, request["moments_s"], duration_s=duration_s, slack=slack)
    return pick(timeline.times_s, Sampling(**request["sampling"]), duration_s=duration_s, slack=slack)


def _write(fd: int, messages: queue.Queue[Message | None]) -> None:
    while (message := messages.get()) is not None:
        header, payload = message
        try:
            wire.send(fd, header, payload)
        except OSError:  # the parent closed the pipe
            os._exit(0)
    os.close(fd)


def _die_with_parent(parent: int) -> None:
    """Exit when standard input closes, or (a copy of the pipe may live on in a sibling) when the parent is gone."""
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        while not selector.select(1.0) and os.getppid() == parent:
            pass
    os._exit(0)


if __name__ == "__main__":
    main()
