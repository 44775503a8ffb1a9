"""What is trained when: the curriculum, as a pure function of the step number."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from x2l_cluster.needles.questions import Kind
from x2l_cluster.needles.script import Split

Shares = dict[Kind, float]

SHARES: Shares = {"retrieval": 0.30, "time": 0.24, "order": 0.22, "existence": 0.10, "count": 0.14}
# Reading a code out of a scene, and finding the group of a given time, start to work only where few groups
# compete. Left in the mixture they stayed at chance for thousands of steps; a few hundred steps on short videos
# with little else light each of them, and afterwards they carry over to long videos by themselves.
CODES: Shares = {"retrieval": 0.70, "time": 0.12, "order": 0.08, "existence": 0.05, "count": 0.05}
TIMES: Shares = {"retrieval": 0.15, "time": 0.70, "order": 0.05, "existence": 0.03, "count": 0.07}
# Last, what is learnt slowest gets most: reading four letters right, and counting where few chunks are sharp.
POLISH: Shares = {"retrieval": 0.36, "time": 0.16, "order": 0.20, "existence": 0.04, "count": 0.24}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Until this share of the training: groups of a video → weight, and the mixture of question kinds."""

    until: float
    groups: dict[int, float]
    shares: Shares = field(default_factory=lambda: SHARES)
    causal: float = 0.0


CURRICULUM: tuple[Stage, ...] = (
    Stage(until=0.05, groups={8: 0.3, 16: 0.7}),
    Stage(until=0.12, groups={16: 0.5, 32: 0.5}),
    Stage(until=0.22, groups={16: 0.15, 32: 0.35, 96: 0.5}),
    Stage(until=0.25, groups={4: 0.6, 8: 0.4}, shares=CODES),
    Stage(until=0.28, groups={8: 0.4, 16: 0.6}, shares=CODES),
    Stage(until=0.31, groups={16: 0.4, 32: 0.35, 96: 0.25}, shares=CODES),
    Stage(until=0.33, groups={4: 0.6, 8: 0.4}, shares=TIMES),
    Stage(until=0.35, groups={8: 0.4, 16: 0.6}, shares=TIMES),
    Stage(until=0.37, groups={16: 0.4, 32: 0.35, 96: 0.25}, shares=TIMES),
    Stage(until=0.50, groups={16: 0.1, 32: 0.2, 96: 0.5, 144: 0.2}, causal=0.22),
    Stage(until=0.56, groups={16: 0.05, 32: 0.10, 96: 0.40, 144: 0.15, 288: 0.30}, causal=0.22),
    Stage(until=1.01, groups={32: 0.05, 96: 0.37, 144: 0.13, 288: 0.45}, shares=POLISH, causal=0.20),
)
QUESTIONS = {4: 6, 8: 8, 16: 10, 32: 12, 96: 20, 144: 28, 288: 40}  # asked in one forward, by groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one batch holds. ``clock_s`` is the video clock at its first frame, ``step_s`` the time between frames."""

    seed: int
    split: Split
    groups: int
    videos: int
    questions: int
    shares: Shares = field(default_factory=lambda: SHARES)
    causal: bool = False
    clock_s: float = 0.0
    step_s: float = 1.0
    max_scene_s: float = 40.0
    draw_size: int = 128


def training_plan(step: int, total: int, groups_per_step: int) -> Plan:
    """The batch of a training step; depends on nothing but the numbers given."""
    rng = random.Random(f"plan/{step}")
    stage = next(s for s in CURRICULUM if step / total < s.until)
    groups = rng.choices(list(stage.groups), weights=list(stage.groups.values()))[0]
    videos = max(1, min(groups_per_step // groups, 256 if groups <= 8 else 128))
    uneven = rng.random() < 0.15
    # Clocks that start late teach long times to short videos.
    late_clock = groups < 144 and rng.random() < 0.5
    return Plan(
        seed=step,
        split="train",
        groups=groups,
        videos=videos,
        questions=QUESTIONS[groups],
        shares=stage.shares,
        causal=rng.random() < stage.causal,
        clock_s=float(2 * rng.randint(0, max(0, 300 - groups))) if late_clock else 0.0,
        step_s=rng.uniform(0.97, 1.05) if uneven else 1.0,
        max_scene_s=16.0 if groups <= 16 else 24.0 if groups <= 32 else 40.0,
        draw_size=256 if groups <= 96 and rng.random() < 0.08 else 128,
    )
