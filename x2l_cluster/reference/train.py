"""Train the reference model: ``python -m x2l_cluster.reference.train --out DIR [--footage DIR] [--steps N]``.

On several GPUs, one process each with ``RANK``, ``LOCAL_RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT`` set
(as ``torchrun`` does); every step then counts so many times the groups.
Stops and resumes at any time: everything random is a function of the step number, and ``DIR/state.pt`` holds
weights, optimiser and step. ``DIR/model.safetensors`` is the latest bf16 export, ``DIR/log.jsonl`` the log.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from x2l_cluster import reference
from x2l_cluster.needles.backgrounds import TRAIN_TEXTURES
from x2l_cluster.reference.data import Codec, Steps, load_clips
from x2l_cluster.reference.evaluate import evaluate, table
from x2l_cluster.reference.forward import Shape
from x2l_cluster.reference.model import Losses, backgrounds, initial_weights, pixels, save_weights
from x2l_cluster.reference.peers import Peers


def learning_rate(step: int, total: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine to 3 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * done)))


def say(line: str) -> None:
    """Progress for whoever watches; the record is ``log.jsonl``."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Run:
    """One training run in one folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        from transformers import AutoConfig

        self.args = args
        self.out = Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.device = torch.device(args.device)
        self.peers = Peers.join(self.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        config = AutoConfig.from_pretrained(reference.path())
        self.shape = Shape.of(config)
        self.codec = Codec(reference.path())
        footage, self.clips = load_clips(Path(args.footage) if args.footage else None)
        self.bank = backgrounds(self.device, footage)
        self.eval_bank = backgrounds(self.device, footage[:0], first=TRAIN_TEXTURES) if args.eval_videos else self.bank
        self.losses = Losses(self.shape, compiled=args.compile)
        weights = initial_weights(config)
        if args.init:
            from safetensors.torch import load_file

            weights |= {k: v.float() for k, v in load_file(args.init).items()}
        self.w = {name: value.to(self.device).requires_grad_() for name, value in weights.items()}
        flat = [p for p in self.w.values() if p.ndim < 2]
        deep = [p for p in self.w.values() if p.ndim >= 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": deep, "weight_decay": 0.02}, {"params": flat, "weight_decay": 0.0}],
            lr=args.lr, betas=(0.9, 0.98), eps=1e-8, fused=self.device.type == "cuda",
        )  # fmt: skip
        self.step = args.start
        self.seconds = 0.0
        if (self.out / "state.pt").exists():
            state = torch.load(self.out / "state.pt", map_location=self.device, weights_only=True)
            with torch.no_grad():
                for name, value in state["weights"].items():
                    self.w[name].copy_(value)
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]

    def log(self, **record: Any) -> None:
        if self.peers.rank:
            return
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, "s": round(self.seconds, 1), **record}) + "\n")

    def save(self) -> None:
        if self.peers.rank:
            return
        state = {"weights": {k: v.detach() for k, v in self.w.items()}, "optimizer": self.optimizer.state_dict(),
                 "step": self.step, "seconds": self.seconds}  # fmt: skip
        torch.save(state, self.out / "state.tmp")
        os.replace(self.out / "state.tmp", self.out / "state.pt")
        save_weights(self.w, self.out / "model.tmp")
        os.replace(self.out / "model.tmp", self.out / "model.safetensors")

    def lowered(self) -> dict[str, torch.Tensor]:
        """The weights as they will be shipped: what trains and what is evaluated is bf16."""
        return {k: v.to(torch.bfloat16).to(self.dtype) for k, v in self.w.items()}

    def evaluate(self, sizes: list[tuple[int, int, int]]) -> None:
        """Held-out accuracy for (groups, videos, rounds), to the screen and the log; nothing with no videos."""
        if not self.args.eval_videos or self.peers.rank:
            return
        with torch.no_grad():
            w = self.lowered()
        for groups, videos, rounds in sizes:
            result = evaluate(w, self.losses, self.codec, self.eval_bank, self.device, groups=groups, videos=videos,
                              seed=10**6, dtype=self.dtype, rounds=rounds)  # fmt: skip
            say(table(result, f"{self.step} G={groups}"))
            self.log(eval_groups=groups, result=result)

    def report(
        self, sums: dict[str, torch.Tensor], steps: int, groups: int, rate: float, waited: float, took: float
    ) -> None:
        """One log line: mean losses and the share of questions answered right, by kind, since the last line."""
        right, asked = sums.pop("right").tolist(), sums.pop("total").tolist()
        record: dict[str, Any] = {k: round(v.item() / steps, 4) for k, v in sums.items()}
        record["acc"] = [round(r / max(1, a), 3) for r, a in zip(right, asked, strict=True)]
        record |= {"lr": rate, "steps_s": round(steps / took, 2), "wait": round(waited / took, 2)}
        self.log(groups=groups, **record)
        if not self.peers.rank:
            say(f"{self.step} {self.seconds:.0f}s {record}")

    def train(self) -> None:
        args = self.args
        total = args.steps
        loader = torch.utils.data.DataLoader(
            Steps(reference.path(), args.schedule or total, args.groups_per_step, self.clips, self.peers.size),
            batch_size=None,
            sampler=range(self.step * self.peers.size + self.peers.rank, total * self.peers.size, self.peers.size),
            num_workers=args.workers,
            prefetch_factor=4 if args.workers else None,
        )
        begun, resumed = time.monotonic() - self.seconds, self.seconds
        sums: dict[str, torch.Tensor] = {}
        since, waited, mark = 0, 0.0, time.monotonic()
        saved = evaluated = time.monotonic()
        before, reading = time.monotonic(), torch.tensor(self.seconds)
        for batch in loader:
            waited += time.monotonic() - before
            done = self.step / (args.schedule or total)
            aux = args.aux * (0.3 if done < 0.3 else 0.3 - 0.2 * min(1.0, (done - 0.3) / 0.4))
            with torch.no_grad():
                frames = pixels(batch, self.bank, self.device, augmented=True, step=batch.plan.seed)
            loss, report = self.losses(self.lowered(), batch, frames, aux, self.dtype)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            gradients = [p.grad for p in self.w.values() if p.grad is not None]
            clock = float(reading)  # as of the step before: to read this step's would be to wait for the device
            reading = self.peers.mean(gradients, time.monotonic() - begun)
            # Short of time, the schedule runs on the clock, so that a run always ends annealed.
            hurry = clock / args.limit_s * (total - args.start) if args.limit_s else 0.0
            rate = learning_rate(max(self.step - args.start, int(hurry)), total - args.start, args.lr, args.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            norm = torch.nn.utils.clip_grad_norm_(list(self.w.values()), 1.0)
            self.optimizer.step()
            self.step += 1
            since += 1
            for name, value in (report | {"norm": norm}).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
            if since >= args.log_every:
                self.seconds = time.monotonic() - begun
                self.report(sums, since, batch.plan.groups, rate, waited, time.monotonic() - mark)
                sums, since, waited, mark = {}, 0, 0.0, time.monotonic()
            if time.monotonic() - saved > args.save_s:
                self.save()
                saved = time.monotonic()
            if time.monotonic() - evaluated > args.eval_s:
                self.evaluate(
                    [(96, args.eval_videos, 1)] + ([(288, max(1, args.eval_videos // 3), 1)] if done > 0.4 else [])
                )
                evaluated = time.monotonic()
            if (args.limit_s and clock > args.limit_s) or (args.pause_s and clock - resumed > args.pause_s):
                break
            before = time.monotonic()
        self.seconds = time.monotonic() - begun
        self.save()
        self.evaluate(
            [(96, args.eval_videos, args.final_rounds), (288, max(1, args.eval_videos // 3), args.final_rounds)]
        )
        self.peers.leave()
        say(f"stopped at step {self.step} after {self.seconds:.0f} s")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="x2l_cluster.reference.train", description="Train the reference model.")
    parser.add_argument("--out", required=True, help="folder of the run; resumes if it holds a state")
    parser.add_argument("--footage", help="folder of *.npz footage for backgrounds")
    parser.add_argument("--init", help="safetensors to start from, instead of random weights")
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--schedule", type=int, default=0, help="steps the curriculum counts to (default: --steps)")
    parser.add_argument("--start", type=int, default=0, help="first step (with --init: where its training stood)")
    parser.add_argument("--groups-per-step", type=int, default=3072)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--aux", type=float, default=1.0, help="scale of the auxiliary losses; 0 for a short last leg")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-s", type=float, default=60.0)
    parser.add_argument("--eval-s", type=float, default=90.0)
    parser.add_argument("--eval-videos", type=int, default=24)
    parser.add_argument("--final-rounds", type=int, default=4)
    parser.add_argument("--limit-s", type=float, default=0.0, help="end after this many seconds of training, annealed")
    parser.add_argument("--pause-s", type=float, default=0.0, help="stop after this many seconds, to be resumed")
    args = parser.parse_args(argv)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.multiprocessing.set_sharing_strategy("file_system")
    Run(args).train()


if __name__ == "__main__":
    main()
