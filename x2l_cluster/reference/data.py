"""Training and evaluation batches: scripts and questions turned into tensors, a pure function of the step number.

Pixels are not drawn here: a batch carries the looks of its frames, and the device that trains draws them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from x2l_cluster.needles.questions import KINDS, Kind, Question, make_questions
from x2l_cluster.needles.script import Script, make_script
from x2l_cluster.reference.labels import Clip, Seen, see_script
from x2l_cluster.reference.layout import RAW, Layout, Special, make_layout
from x2l_cluster.reference.schedule import Plan, training_plan
from x2l_cluster.reference.states import policy_states, training_states

CHUNK_GROUPS = 8
PREFIX = "<|im_start|>user\n"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"


class Codec:
    """The tokenizer as plain functions (the fast library itself: the wrapper costs more than the encoding)."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.raw = Tokenizer.from_file(str(folder / "tokenizer.json"))

        def one(token: str) -> int:
            found = self.raw.token_to_id(token)
            assert found is not None, f"{folder}: the tokenizer lacks {token}"
            return int(found)

        self.special = Special(vision_start=one("<|vision_start|>"), vision_end=one("<|vision_end|>"),
                               video=one("<|video_pad|>"), pad=one("<|endoftext|>"))  # fmt: skip
        self.end = one("<|im_end|>")
        self.prefix, self.suffix = self.encode(PREFIX), self.encode(SUFFIX)

    def encode(self, words: str) -> list[int]:
        return list(self.raw.encode(words, add_special_tokens=False).ids)

    def layout(self, group_times_s: Sequence[float]) -> Layout:
        return make_layout(self.prefix, group_times_s, self.encode, self.special, chunk_groups=CHUNK_GROUPS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """See the shapes in ``make_batch``; ``question_list`` is filled for evaluation only."""

    plan: Plan
    layout: Layout
    rows: torch.Tensor
    since: torch.Tensor
    where: torch.Tensor
    letters: torch.Tensor
    marker: torch.Tensor
    begins: torch.Tensor
    digits: torch.Tensor
    question_ids: torch.Tensor
    states: torch.Tensor
    target_at: torch.Tensor
    target: torch.Tensor
    target_question: torch.Tensor
    kinds: torch.Tensor
    question_list: list[list[Question]]


def load_clips(folder: Path | None) -> tuple[torch.Tensor, list[Clip]]:
    """Every ``*.npz`` (``frames (crops, n, 3, 128, 128)`` uint8, ``fps``) in ``folder``; none if it is None."""
    frames: list[torch.Tensor] = []
    clips: list[Clip] = []
    at = 0
    for file in sorted(folder.glob("*.npz")) if folder else []:
        with np.load(file) as data:
            for crop in data["frames"]:
                frames.append(torch.from_numpy(crop))
                clips.append(Clip(start=at, frames=len(crop), fps=float(data["fps"])))
                at += len(crop)
    return (torch.cat(frames) if frames else torch.zeros(0, 3, 128, 128, dtype=torch.uint8)), clips


def make_batch(codec: Codec, plan: Plan, clips: list[Clip], *, policy: str | None = None) -> Batch:
    """Build a batch. With B videos, F = 2G frames, Q questions of L tokens, C chunks:

    ``rows (B*F, fields)``, ``since (B*F,)``, ``where (B*F,)``, ``letters (B, G, 16, 4)``, ``marker (B, G, 2)``,
    ``begins (B, G)`` as in ``Seen``, ``digits (G, 3)`` of the groups' times; ``question_ids (B, Q, L)``,
    ``states (B, Q, C)``; ``target_at`` flat positions in (B, Q, L) whose next token is ``target``.
    """
    rng, dice = random.Random(f"batch/{plan.split}/{plan.seed}"), random.Random(f"states/{plan.seed}")
    times = [plan.step_s * t for t in range(2 * plan.groups)]
    pairs = [(times[2 * g] + times[2 * g + 1]) / 2 + plan.clock_s for g in range(plan.groups)]
    layout = codec.layout(pairs)
    spans = [(times[2 * CHUNK_GROUPS * i], times[min(len(times), 2 * CHUNK_GROUPS * (i + 1)) - 1])
             for i in range(layout.chunks)]  # fmt: skip
    seen: list[Seen] = []
    ids: list[list[list[int]]] = []
    heads: list[list[int]] = []
    states = torch.full((plan.videos, plan.questions, layout.chunks), RAW, dtype=torch.uint8)
    kinds = torch.full((plan.videos, plan.questions), -1)
    asked: list[list[Question]] = []
    for b in range(plan.videos):
        script = make_script(
            rng.getrandbits(40), groups=plan.groups, group_s=2 * plan.step_s, chunk_s=2 * CHUNK_GROUPS * plan.step_s,
            max_scene_s=plan.max_scene_s if plan.split == "eval" else rng.uniform(12.0, plan.max_scene_s),
            split=plan.split,
        )  # fmt: skip
        seen.append(see_script(script, times, clips))
        questions = _questions(script, plan, times, rng)
        asked.append(questions if policy else [])
        lines, starts = [], []
        for j, question in enumerate(questions):
            head = codec.encode(question.prompt) + codec.suffix
            lines.append([*head, *codec.encode(question.answer), codec.end])
            starts.append(len(head))
            kinds[b, j] = KINDS.index(question.kind)
            if policy is not None:
                states[b, j] = policy_states(question, spans, dice, policy)
            elif not plan.causal:  # a causal step is raw throughout
                states[b, j] = training_states(question, spans, dice)
        ids.append(lines)
        heads.append(starts)
    length = -(-max(len(line) for lines in ids for line in lines) // 8) * 8
    packed = torch.full((plan.videos, plan.questions, length), codec.special.pad)
    at, target, owner = [], [], []
    for b, lines in enumerate(ids):
        for j, line in enumerate(lines):
            packed[b, j, : len(line)] = torch.tensor(line)
            base = (b * plan.questions + j) * length
            for k in range(heads[b][j], len(line)):
                at.append(base + k - 1)
                target.append(line[k])
                owner.append(b * plan.questions + j)
    digits = torch.tensor([[int(t) // 100 % 10, int(t) // 10 % 10, int(t) % 10] for t in pairs])
    return Batch(
        plan=plan, layout=layout, rows=torch.cat([v.rows for v in seen]),
        since=torch.cat([v.since for v in seen]), where=torch.cat([v.where for v in seen]),
        letters=torch.stack([v.letters for v in seen]), marker=torch.stack([v.marker for v in seen]),
        begins=torch.stack([v.begins for v in seen]), digits=digits,
        question_ids=packed, states=states, target_at=torch.tensor(at), target=torch.tensor(target),
        target_question=torch.tensor(owner), kinds=kinds, question_list=asked,
    )  # fmt: skip


def _questions(script: Script, plan: Plan, times: list[float], rng: random.Random) -> list[Question]:
    shares: dict[Kind, int] = {k: max(1, round(v * plan.questions)) for k, v in plan.shares.items()}
    seed = rng.getrandbits(40)
    out = make_questions(script, per_kind=shares, seed=seed, frame_times_s=times, clock_s=plan.clock_s)
    missing = plan.questions - len(out)
    if missing > 0:  # a video too poor for its share of one kind gets more of another
        more: dict[Kind, int] = {"order": missing // 2 + 1, "count": missing, "existence": missing}
        out += make_questions(script, per_kind=more, seed=seed + 1, frame_times_s=times, clock_s=plan.clock_s)
    return out[: plan.questions] if missing >= 0 else rng.sample(out, plan.questions)


class Steps(torch.utils.data.Dataset[Batch]):
    """Every batch, for a ``DataLoader`` with worker processes. A step has ``peers`` batches, one for each process."""

    def __init__(self, folder: Path, total: int, groups_per_step: int, clips: list[Clip], peers: int = 1) -> None:
        self.folder, self.total, self.groups_per_step, self.clips = folder, total * peers, groups_per_step, clips
        self.codec: Codec | None = None

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, step: Any) -> Batch:
        torch.set_num_threads(1)
        self.codec = self.codec or Codec(self.folder)
        plan = training_plan(int(step), self.total, self.groups_per_step)
        return make_batch(self.codec, plan, self.clips)
