"""Two training processes: one exchange a step, after which they have the same gradients and the same time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import torch

from x2l_cluster.reference.peers import Peers

PROCESS = """
import sys, torch
from x2l_cluster.reference.peers import Peers
peers = Peers.join(torch.device("cpu"))
own = [torch.full((2, 3), 1.0 + peers.rank), torch.arange(4.0) * peers.rank]
clock = peers.mean(own, 10.0 + peers.rank)
print(peers.rank, peers.size, float(clock), own[0].unique().tolist(), own[1].tolist())
peers.leave()
"""


def test_two_processes_get_the_mean_of_their_gradients_and_clocks() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS], env=shared | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE, text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=120)[0].strip() for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert told == [f"{rank} 2 10.5 [1.5] [0.0, 0.5, 1.0, 1.5]" for rank in (0, 1)]


def test_alone_nothing_is_exchanged() -> None:
    own = [torch.ones(3)]
    alone = Peers.join(torch.device("cpu"))
    assert (alone, float(alone.mean(own, 4.0)), own[0].tolist()) == (Peers(), 4.0, [1.0, 1.0, 1.0])
    alone.leave()
