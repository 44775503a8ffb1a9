"""Training and evaluation batches: scripts and questions turned into tensors, a pure function of the step number.

Pixels are not drawn here: a batch carries the looks of its frames, and the device that trains draws them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from x2l_cluster.needles.backgrounds import TRAIN_TEXTURES
from x2l_cluster.needles.looks import COLUMN, look
from x2l_cluster.needles.questions import KINDS, Kind, Question, make_questions, needed_chunks
from x2l_cluster.needles.script import COLORS, LETTERS, SHAPES, Script, Split, make_script
from x2l_cluster.reference.layout import COARSE, FINE, RAW, UNIFORM, Layout, Special, make_layout

GRID = 4  # visual tokens a side
CHUNK_GROUPS = 8
PREFIX = "<|im_start|>user\n"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
EVAL_POLICIES = ("full", "fine", "needed", "auto", "random2", "coarse", "uniform", "stock")
SHARES: dict[Kind, float] = {"retrieval": 0.30, "time": 0.24, "order": 0.22, "existence": 0.10, "count": 0.14}

# Reading a code out of a scene starts to work only where few groups compete: a stretch of short videos lights it.
FOCUS: dict[Kind, float] = {"retrieval": 0.15, "time": 0.70, "order": 0.05, "existence": 0.03, "count": 0.07}


class Codec:
    """The tokenizer as plain functions (the fast library itself: the wrapper costs more than the encoding)."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
        one = self.raw.token_to_id
        self.special = Special(vision_start=one("<|vision_start|>"), vision_end=one("<|vision_end|>"),
                               video=one("<|video_pad|>"), pad=one("<|endoftext|>"))  # fmt: skip
        self.end = one("<|im_end|>")
        self.prefix, self.suffix = self.encode(PREFIX), self.encode(SUFFIX)

    def encode(self, words: str) -> list[int]:
        return list(self.raw.encode(words, add_special_tokens=False).ids)

    def layout(self, group_times_s: Sequence[float]) -> Layout:
        return make_layout(self.prefix, group_times_s, self.encode, self.special, chunk_groups=CHUNK_GROUPS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one batch holds."""

    seed: int
    split: Split
    groups: int
    videos: int
    questions: int
    causal: bool = False
    clock_s: float = 0.0
    step_s: float = 1.0
    max_scene_s: float = 40.0
    draw_size: int = 128
    focus: bool = False


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A stretch of footage in the bank of backgrounds."""

    start: int
    frames: int
    fps: float


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

    ``rows (B*F, fields)``, ``since (B*F,)``, ``where (B*F,)`` background index (textures first, then footage);
    ``letters (B, G, 16, 4)`` letter k of the code whose centre is in that cell (0: none), ``marker (B, G, 2)``
    colour and shape (0: none, -100: two scenes in one group), ``begins (B, G)``; ``question_ids (B, Q, L)``,
    ``states (B, Q, C)``; ``target_at`` flat positions in (B, Q, L) whose next token is ``target``.
    """
    rng, dice = random.Random(f"batch/{plan.split}/{plan.seed}"), random.Random(f"states/{plan.seed}")
    times = [plan.step_s * t for t in range(2 * plan.groups)]
    pairs = [(times[2 * g] + times[2 * g + 1]) / 2 + plan.clock_s for g in range(plan.groups)]
    layout = codec.layout(pairs)
    spans = [(times[2 * CHUNK_GROUPS * i], times[min(len(times), 2 * CHUNK_GROUPS * (i + 1)) - 1])
             for i in range(layout.chunks)]  # fmt: skip
    rows, since, where, letters, marker, begins = [], [], [], [], [], []
    ids: list[list[list[int]]] = []
    heads: list[list[int]] = []
    states = torch.zeros(plan.videos, plan.questions, layout.chunks, dtype=torch.uint8)
    kinds = torch.full((plan.videos, plan.questions), -1)
    asked: list[list[Question]] = []
    for b in range(plan.videos):
        script = make_script(
            rng.getrandbits(40), groups=plan.groups, group_s=2 * plan.step_s, chunk_s=2 * CHUNK_GROUPS * plan.step_s,
            max_scene_s=plan.max_scene_s if plan.split == "eval" else rng.uniform(min(12.0, plan.max_scene_s), plan.max_scene_s),
            split=plan.split,
        )  # fmt: skip
        for part, value in zip((rows, since, where, letters, marker, begins), _frames(script, times, clips), strict=True):
            part.append(value)
        questions = _questions(script, plan, times, rng)
        asked.append(questions if policy else [])
        lines, starts = [], []
        for j, question in enumerate(questions):
            head = codec.encode(question.prompt) + codec.suffix
            lines.append([*head, *codec.encode(question.answer), codec.end])
            starts.append(len(head))
            kinds[b, j] = KINDS.index(question.kind)
            states[b, j] = _states(question, spans, dice, policy, plan.causal)
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
        plan=plan, layout=layout, rows=torch.cat(rows), since=torch.cat(since), where=torch.cat(where),
        letters=torch.stack(letters), marker=torch.stack(marker), begins=torch.stack(begins), digits=digits,
        question_ids=packed, states=states, target_at=torch.tensor(at), target=torch.tensor(target),
        target_question=torch.tensor(owner), kinds=kinds, question_list=asked,
    )  # fmt: skip


def _frames(script: Script, times: list[float], clips: list[Clip]) -> tuple[torch.Tensor, ...]:
    looks = torch.tensor([look(s, script.split) for s in script.scenes])
    edges = np.array([s.end_s for s in script.scenes[:-1]])
    t = np.array(times)
    index = np.searchsorted(edges, t, side="right")
    begun = np.array([s.start_s for s in script.scenes])
    since = torch.from_numpy((t - begun[index]).astype(np.float32))
    rows = looks[index]
    where = rows[:, COLUMN["texture"]].long()
    if script.split == "eval":
        where = where - TRAIN_TEXTURES
    if clips:
        for i, scene in enumerate(looks):
            if scene[COLUMN["use_footage"]] > 0.5:
                start = float(scene[COLUMN["footage_start"]])
                clip = clips[int(start * 1000) % len(clips)]
                here = torch.from_numpy(index == i)
                moved = ((since[here] + start) * clip.fps).long() % clip.frames
                where[here] = TRAIN_TEXTURES + clip.start + moved
    groups = len(times) // 2
    letters = torch.zeros(groups, GRID * GRID, 4, dtype=torch.long)
    marker = torch.zeros(groups, 2, dtype=torch.long)
    begins = torch.zeros(groups, dtype=torch.long)
    before = -1
    for g in range(groups):
        a, b = int(index[2 * g]), int(index[2 * g + 1])
        first, second = script.scenes[a].marker, script.scenes[b].marker
        begins[g] = int(b != before)
        before = b
        if first != second:
            marker[g] = -100
        elif first is not None:
            marker[g] = torch.tensor([COLORS.index(first.color) + 1, SHAPES.index(first.shape) + 1])
    for i, scene in enumerate(script.scenes):
        if scene.code is None:
            continue
        c = {name: float(looks[i, k]) for name, k in COLUMN.items()}
        for g in range(groups):
            if times[2 * g + 1] < scene.code.start_s or times[2 * g] >= scene.code.end_s:
                continue
            seen = [u for u in times[2 * g : 2 * g + 2] if scene.code.start_s <= u < scene.code.end_s]
            if not seen:
                continue
            u = seen[0] - scene.start_s
            x0 = c["c_x"] + c["c_vx"] * (u - (c["code_from"] + c["code_to"]) / 2)
            for k, letter in enumerate(scene.code.text):
                along = (k - 1.5) * c["c_pitch"] * c["c_stretch"]
                x, y = x0 + along * math.cos(c["c_angle"]), c["c_y"] + along * math.sin(c["c_angle"])
                cell = min(3, max(0, int(y * GRID))) * GRID + min(3, max(0, int(x * GRID)))
                letters[g, cell, k] = LETTERS.index(letter) + 1
    return rows, since, where, letters, marker, begins


def _questions(script: Script, plan: Plan, times: list[float], rng: random.Random) -> list[Question]:
    table = FOCUS if plan.focus else SHARES
    shares: dict[Kind, int] = {k: max(1, round(v * plan.questions)) for k, v in table.items()}
    seed = rng.getrandbits(40)
    out = make_questions(script, per_kind=shares, seed=seed, frame_times_s=times, clock_s=plan.clock_s)
    missing = plan.questions - len(out)
    if missing > 0:  # a video too poor for its share of one kind gets more of another
        more: dict[Kind, int] = {"order": missing // 2 + 1, "count": missing, "existence": missing}
        out += make_questions(script, per_kind=more, seed=seed + 1, frame_times_s=times, clock_s=plan.clock_s)
    return out[: plan.questions] if missing >= 0 else rng.sample(out, plan.questions)


def _states(
    question: Question, spans: list[tuple[float, float]], rng: random.Random, policy: str | None, causal: bool
) -> torch.Tensor:
    """In which state this question sees each chunk; drawn at random for training, by ``policy`` for evaluation."""
    n = len(spans)
    everything = {"full": RAW, "stock": RAW, "fine": FINE, "coarse": COARSE, "uniform": UNIFORM}
    needed = [] if question.kind in {"order", "existence", "count"} else needed_chunks(question, spans)

    def mix(extra: int, needed_state: int = FINE) -> torch.Tensor:
        out = torch.full((n,), COARSE, dtype=torch.uint8)
        out[rng.sample(range(n), min(n, extra))] = FINE
        out[needed] = needed_state
        return out

    if policy is not None:
        if policy in {"needed", "auto"}:
            return mix(0 if policy == "needed" else 1)
        if policy == "random2":
            out = torch.full((n,), COARSE, dtype=torch.uint8)
            out[rng.sample(range(n), min(n, 2))] = FINE
            return out
        return torch.full((n,), everything[policy], dtype=torch.uint8)
    if causal:
        return torch.full((n,), RAW, dtype=torch.uint8)
    draw = rng.random()
    whole = ((0.12, RAW), (0.24, FINE), (0.36, UNIFORM))
    for limit, state in whole:
        if draw < limit:
            return torch.full((n,), state, dtype=torch.uint8)
    if draw < 0.46:  # anything goes, but what must be read is readable
        out = torch.tensor([rng.choice((RAW, FINE, COARSE)) for _ in range(n)], dtype=torch.uint8)
        out[needed] = rng.choice((RAW, FINE))
        return out
    if question.kind != "retrieval" and draw < (0.62 if needed else 0.72):
        return torch.full((n,), COARSE, dtype=torch.uint8)
    return mix(0) if draw < 0.80 else mix(rng.choice((1, 1, 2, 2, 3)))


Stage = tuple[float, dict[int, float]]  # until this share of the training; groups → weight
CURRICULUM: tuple[Stage, ...] = (
    (0.05, {8: 0.3, 16: 0.7}),
    (0.12, {16: 0.5, 32: 0.5}),
    (0.25, {16: 0.15, 32: 0.35, 96: 0.5}),
    (0.45, {16: 0.1, 32: 0.2, 96: 0.5, 144: 0.2}),
    (1.01, {16: 0.05, 32: 0.10, 96: 0.40, 144: 0.15, 288: 0.30}),
)
QUESTIONS = {4: 6, 8: 8, 16: 10, 32: 12, 96: 20, 144: 28, 288: 40}


def training_plan(step: int, total: int, groups_per_step: int, focus: tuple[int, int] = (0, 0)) -> Plan:
    """The batch of a training step; depends on nothing but the numbers given."""
    rng = random.Random(f"plan/{step}")
    done = step / total
    mixture = next(m for until, m in CURRICULUM if done < until)
    focused = focus[0] <= step < focus[1]
    if focused:
        third = int(3 * (step - focus[0]) / (focus[1] - focus[0]))
        mixture = ({4: 0.6, 8: 0.4}, {8: 0.4, 16: 0.6}, {16: 0.4, 32: 0.35, 96: 0.25})[third]
    groups = rng.choices(list(mixture), weights=list(mixture.values()))[0]
    videos = max(1, min(groups_per_step // groups, 256 if groups <= 8 else 128))
    late = done > 0.25 and not focused
    uneven = rng.random() < 0.15
    # Clocks that start late teach long times to short videos.
    clock = float(2 * rng.randint(0, max(0, 300 - groups))) if groups < 144 and rng.random() < 0.5 else 0.0
    return Plan(
        seed=step, split="train", groups=groups, videos=videos, questions=QUESTIONS[groups],
        causal=late and rng.random() < 0.22, clock_s=clock, step_s=rng.uniform(0.97, 1.05) if uneven else 1.0,
        max_scene_s=16.0 if groups <= 16 else 24.0 if groups <= 32 else 40.0,
        draw_size=256 if groups <= 96 and rng.random() < 0.08 else 128, focus=focused,
    )  # fmt: skip


class Steps(torch.utils.data.Dataset[Batch]):
    """Batch of every step, for a ``DataLoader`` with worker processes."""

    def __init__(self, folder: Path, total: int, groups_per_step: int, clips: list[Clip],
                 focus: tuple[int, int] = (0, 0)) -> None:  # fmt: skip
        self.folder, self.total, self.groups_per_step, self.clips = folder, total, groups_per_step, clips
        self.focus = focus
        self.codec: Codec | None = None

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, step: Any) -> Batch:
        torch.set_num_threads(1)
        self.codec = self.codec or Codec(self.folder)
        return make_batch(self.codec, training_plan(int(step), self.total, self.groups_per_step, self.focus), self.clips)
