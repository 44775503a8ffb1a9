"""What every VideoLM promises the engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tiny import qwen3_vl, two_pass
from x2l_cluster.engine.assemble import Assembler, Prefix
from x2l_cluster.errors import InvalidQuestion
from x2l_cluster.models import Step, VideoLM, View
from x2l_cluster.types import Level, Role

FRAMES = np.random.default_rng(0).integers(0, 256, (8, 32, 48, 3), dtype=np.uint8)
TIMES = [i * 1.0 for i in range(8)]


@pytest.fixture(params=[qwen3_vl, two_pass], scope="module")
def lm(request) -> VideoLM:
    return request.param()


@pytest.fixture(scope="module")
def prefix(lm) -> Prefix:
    return Prefix.of(lm, lm.prompt("What is it?").prefix)


@pytest.fixture(scope="module")
def chunk(lm, prefix):
    return lm.embed_chunk(FRAMES, TIMES, prefix.end, lm.recipe(height=32, width=48, chunk_frames=8))


def test_a_prompt_marks_the_words_of_the_question(lm):
    prompt = lm.prompt("What code is shown with the red star?")
    words = lm.text([prompt.suffix[i] for i in prompt.question])
    assert words == "What code is shown with the red star?"
    assert lm.text([prompt.suffix[i] for i in prompt.content]).replace(" ", "") == "coderedstar"


def test_earlier_turns_stand_behind_the_video_and_before_the_question(lm):
    plain, later = lm.prompt("And then?"), lm.prompt("And then?", [("What first?", "a star")])
    assert later.prefix == plain.prefix
    assert lm.text(later.suffix).index("a star") < lm.text(later.suffix).index("And then?")


@pytest.mark.parametrize("question", ["", "  \n", "what <|video_pad|> is this?", "<|im_end|>"])
def test_a_question_that_is_empty_or_holds_control_tokens_is_refused(lm, question):
    with pytest.raises(InvalidQuestion):
        lm.prompt(question)


def test_runs_tile_the_tokens_and_name_each_group(lm, chunk):
    assert [run.start for run in chunk.runs] == [0, *(run.stop for run in chunk.runs)][:-1]
    assert chunk.runs[-1].stop == len(chunk) == len(chunk.coords)
    groups = len(FRAMES) // lm.spec.group_frames
    assert [run.group for run in chunk.runs if run.role is Role.VISUAL] == list(range(groups))
    assert chunk.visual is not None
    assert chunk.visual.shape[0] == groups
    assert chunk.end > float(chunk.coords.max())


def test_prefill_leaves_the_memory_as_it_was(lm, prefix, chunk):
    view = View([prefix.page])
    for level in lm.spec.passes:
        block = lm.prefill(chunk, level, view)
        again = lm.prefill(chunk, level, view)
        assert view.own == 0
        torch.testing.assert_close(block.keys, again.keys, atol=0, rtol=0)
    assert block.keys.shape[:2] == (lm.spec.layers, lm.spec.kv_heads)
    assert block.coords.shape[1] == lm.spec.axes


def test_a_chunk_sees_its_memory(lm, prefix, chunk):
    block = lm.prefill(chunk, Level.L, View([prefix.page]))
    page = Assembler(lm).page(block, block.coords)
    alone = lm.prefill(chunk, Level.L, View([prefix.page]))
    after = lm.prefill(chunk, Level.L, View([prefix.page, page]))
    assert (alone.values - after.values).abs().max() > 1e-3


def test_requests_in_one_forward_do_not_see_each_other(lm, prefix, chunk):
    questions = ["What is it?", "Is a red star shown anywhere in the video?", "When?"]
    block = lm.prefill(chunk, Level.L, View([prefix.page]))
    page = Assembler(lm).page(block, block.coords)

    def steps(which: list[str]) -> list[Step]:
        return [
            Step(tokens=lm.embed_text(lm.prompt(q).suffix, chunk.end), view=View([prefix.page, page])) for q in which
        ]

    together = lm.forward(steps(questions)).hidden
    for question, hidden in zip(questions, together, strict=True):
        torch.testing.assert_close(hidden, lm.forward(steps([question])).hidden[0], atol=1e-5, rtol=1e-5)


def test_queries_and_keys_come_before_rotation(lm, prefix):
    """Moving the tokens changes neither in the first layer, where nothing else depends on positions."""
    ids = lm.prompt("What is it?").suffix
    traces = [
        lm.forward(
            [Step(tokens=lm.embed_text(ids, position), view=View([prefix.page]))], keep_kv=True, queries=frozenset({0})
        )
        for position in (prefix.end, prefix.end + 100)
    ]
    torch.testing.assert_close(traces[0].keys[0][0], traces[1].keys[0][0])
    torch.testing.assert_close(traces[0].queries[0][0], traces[1].queries[0][0])
    assert traces[0].queries[0][0].shape == (lm.spec.heads, len(ids), lm.spec.head_dim)


def test_a_forward_can_stop_early(lm, prefix):
    tokens = lm.embed_text(lm.prompt("What is it?").suffix, prefix.end)
    short = lm.forward([Step(tokens=tokens, view=View([prefix.page]))], keep_kv=True, until=1)
    full = lm.forward([Step(tokens=tokens, view=View([prefix.page]))], keep_kv=True)
    assert short.keys[0].shape[0] == 1
    torch.testing.assert_close(short.keys[0][0], full.keys[0][0])


def test_rotation_depends_on_differences_of_positions_only(lm):
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, lm.spec.head_dim, generator=generator).unbind(0)
    where = torch.tensor([[3.5, 1.0, 2.0][: lm.spec.axes]])
    other = torch.tensor([[9.0, 4.0, 0.5][: lm.spec.axes]])
    near = lm.rotate(query, where) @ lm.rotate(key, other).T
    far = lm.rotate(query, where + 50) @ lm.rotate(key, other + 50).T
    torch.testing.assert_close(near, far, atol=1e-4, rtol=1e-4)
    assert (near - query @ key.T).abs() > 1e-3
