"""One training on several GPUs: every process has its own batches, all take the same step.

Environment variables say who one is, as ``torchrun`` sets them. Alone, nothing is exchanged.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> Peers:
        """Meets the others, if there are any (``WORLD_SIZE``); each then has the GPU of its number."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        rank = int(os.environ["RANK"])
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(rank=rank, size=size)

    def mean(self, gradients: Sequence[torch.Tensor], clock_s: float) -> torch.Tensor:
        """Puts the mean over all processes into ``gradients``, in one exchange; returns the mean of their clocks, ().

        What depends on the time, the learning rate and the end, must be decided by this one clock: weights stay equal
        only if all processes take the same steps.
        """
        if self.size == 1:
            return torch.tensor(clock_s)
        flat = torch.cat([g.flatten() for g in gradients] + [gradients[0].new_tensor([clock_s])])
        dist.all_reduce(flat)
        flat /= self.size
        for own, mean in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
            own.copy_(mean.view_as(own))
        return flat[-1]

    def leave(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()
