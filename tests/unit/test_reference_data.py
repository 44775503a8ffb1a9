"""Training batches: a pure function of the step, answers where the targets say, labels where the letters are."""

from __future__ import annotations

import random

import pytest
import torch

from x2l_cluster import reference
from x2l_cluster.needles import KINDS, make_questions, make_script, needed_chunks
from x2l_cluster.needles.drawing import render
from x2l_cluster.reference.augment import augment
from x2l_cluster.reference.data import Codec, make_batch
from x2l_cluster.reference.labels import see_script
from x2l_cluster.reference.layout import COARSE, FINE, RAW, UNIFORM
from x2l_cluster.reference.schedule import CURRICULUM, Plan, training_plan
from x2l_cluster.reference.states import POLICIES, policy_states, training_states

PLAN = Plan(seed=5, split="train", groups=16, videos=3, questions=8)
SPANS = [(16.0 * i, 16.0 * i + 15.0) for i in range(12)]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(reference.path())


def test_a_batch_repeats_for_its_plan(codec: Codec) -> None:
    one, two = (make_batch(codec, PLAN, []) for _ in range(2))
    assert torch.equal(one.question_ids, two.question_ids)
    assert torch.equal(one.states, two.states)
    assert torch.equal(one.rows, two.rows)


def test_targets_are_the_answers_and_nothing_else(codec: Codec) -> None:
    batch = make_batch(codec, PLAN, [], policy="full")
    length = batch.question_ids.shape[-1]
    for b, asked in enumerate(batch.question_list):
        for j, question in enumerate(asked):
            mine = batch.target_question == b * PLAN.questions + j
            assert batch.target[mine].tolist() == [*codec.encode(question.answer), codec.end]
            at = batch.target_at[mine] - (b * PLAN.questions + j) * length
            line = batch.question_ids[b, j]
            assert torch.equal(line[at + 1], batch.target[mine])
            assert codec.raw.decode(line[: int(at[0]) + 1].tolist(), skip_special_tokens=False).startswith(
                question.prompt
            )
            assert batch.kinds[b, j] == KINDS.index(question.kind)


def test_letters_are_labelled_where_they_are_drawn() -> None:
    script = make_script(6, groups=48)
    times = [float(t) for t in range(96)]
    labels = see_script(script, times, []).letters
    for scene in script.scenes:
        if scene.code is None:
            continue
        group = next(g for g in range(48) if scene.code.start_s <= 2 * g and 2 * g + 1 < scene.code.end_s)
        hidden, shown = render(script, [scene.code.start_s - 0.01, scene.code.start_s + 0.01]).float()
        changed = (hidden - shown).abs().amax(-1).view(4, 32, 4, 32).amax((1, 3)) > 40
        cells = (labels[group] > 0).any(-1).view(4, 4)
        assert (cells & ~changed).sum() == 0
        assert [int(labels[group][:, k].max()) for k in range(4)] == [
            "ABCDEFHKLMNPRSTUVXYZ".index(c) + 1 for c in scene.code.text
        ]


def test_a_code_is_never_asked_for_where_its_chunk_is_coarse() -> None:
    rng = random.Random(0)
    seen = set()
    for seed in range(30):
        for question in make_questions(make_script(seed, groups=96), per_kind={"retrieval": 8}):
            chunk = int(question.spans[0][0] // 16)
            state = training_states(question, SPANS, rng)
            seen.add(int(state[chunk]))
    assert seen == {RAW, FINE, UNIFORM}


def test_policies_do_what_they_are_called() -> None:
    question = make_questions(make_script(1, groups=96), per_kind={"retrieval": 1})[0]
    chunk = int(question.spans[0][0] // 16)
    states = {p: policy_states(question, SPANS, random.Random(1), p) for p in POLICIES}
    assert set(states["full"].tolist()) == set(states["stock"].tolist()) == {RAW}
    assert set(states["coarse"].tolist()) == {COARSE}
    assert set(states["uniform"].tolist()) == {UNIFORM}
    assert (states["needed"] == FINE).nonzero()[:, 0].tolist() == [chunk]
    assert states["auto"][chunk] == FINE
    assert int((states["auto"] == FINE).sum()) in {1, 2}
    assert (states["random2"] == FINE).sum() == 2


def test_global_questions_are_trained_with_the_chunks_sharp_that_a_scorer_would_pick() -> None:
    rng = random.Random(0)
    picked = []
    for seed in range(40):
        for question in make_questions(make_script(seed, groups=96), per_kind={"count": 6}):
            shown = set(needed_chunks(question, SPANS))
            fine = set((training_states(question, SPANS, rng) == FINE).nonzero()[:, 0].tolist())
            if shown and 0 < len(fine) <= 3:
                picked.append(fine <= shown)
    assert 0.5 < sum(picked) / len(picked) < 0.95


def test_the_curriculum_covers_every_step_and_ends_long() -> None:
    assert [s.until for s in CURRICULUM] == sorted(s.until for s in CURRICULUM)
    plans = [training_plan(step, 1000, 3072) for step in range(1000)]
    assert all(p.groups * p.videos <= 3072 for p in plans)
    assert not any(p.causal for p in plans[:370])
    assert any(p.causal for p in plans[370:])
    assert max(p.groups for p in plans) == 288
    assert training_plan(7, 1000, 3072) == plans[7]


def test_augmentation_keeps_the_range_repeats_and_changes_pixels() -> None:
    frames = torch.rand(4, 3, 128, 128)
    for seed in range(6):
        out = augment(frames.clone(), 2, seed)
        assert out.shape == frames.shape
        assert 0 <= out.min() <= out.max() <= 1
        assert torch.equal(out, augment(frames.clone(), 2, seed))
        assert (out - frames).abs().mean() > 1e-3
