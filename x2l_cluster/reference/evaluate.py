"""Held-out accuracy by kind and policy during training: new fonts and textures, drawn at 256 pixels and resized."""

from __future__ import annotations

from typing import Any

import torch

from x2l_cluster.reference.data import Codec, make_batch
from x2l_cluster.reference.model import Losses, pixels, see
from x2l_cluster.reference.schedule import QUESTIONS, Plan
from x2l_cluster.reference.states import POLICIES

COLUMNS = ("retrieval", "at", "when", "order", "existence", "count")


@torch.no_grad()
def evaluate(
    w: dict[str, torch.Tensor], losses: Losses, codec: Codec, bank: torch.Tensor, device: torch.device, *,
    groups: int, videos: int, seed: int, dtype: torch.dtype, policies: tuple[str, ...] = POLICIES, rounds: int = 1,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """``{policy: {kind: share right}}``; greedy decoding is right exactly if every answer token's argmax is."""
    score = {p: {c: [0, 0] for c in COLUMNS} for p in policies}
    for i in range(rounds):
        plan = Plan(
            seed=seed + i, split="eval", groups=groups, videos=videos, questions=QUESTIONS[groups], draw_size=256
        )
        batches = {p: make_batch(codec, plan, [], policy=p) for p in policies}
        first = next(iter(batches.values()))
        frames = pixels(first, bank, device, augmented=False)
        tokens, deep = see(w, losses.shape, frames, dtype)
        names = [_column(q) for asked in first.question_list for q in asked]
        rows = [b * plan.questions + j for b, asked in enumerate(first.question_list) for j in range(len(asked))]
        for policy, batch in batches.items():
            logits, _ = losses.answers(w, batch, tokens, deep, causal=policy == "stock")
            wrong = torch.zeros(plan.videos * plan.questions, device=device)
            wrong.index_add_(
                0, batch.target_question.to(device), (logits.argmax(-1) != batch.target.to(device)).float()
            )
            good = (wrong == 0).tolist()
            for name, row in zip(names, rows, strict=True):
                score[policy][name][0] += good[row]
                score[policy][name][1] += 1
    return {p: {c: round(a / max(1, n), 3) for c, (a, n) in row.items()} for p, row in score.items()}


def _column(question: Any) -> str:
    if question.kind != "time":
        return str(question.kind)
    return "when" if question.tolerance_s else "at"


def table(result: dict[str, dict[str, float]], title: str) -> str:
    """A compact table for the log."""
    head = f"{title:>14} " + " ".join(f"{c[:6]:>6}" for c in COLUMNS)
    lines = [f"{policy:>14} " + " ".join(f"{100 * row[c]:6.1f}" for c in COLUMNS) for policy, row in result.items()]
    return "\n".join([head, *lines])
