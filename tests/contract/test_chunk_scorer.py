"""What every scorer promises."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from tests.blocks import raw_block
from x2l_cluster.compress import compress
from x2l_cluster.errors import CalibrationMissing, InvalidInput, UnsupportedModel
from x2l_cluster.kv.block import KVBlock
from x2l_cluster.models.base import ModelSpec
from x2l_cluster.select import (
    SCORERS,
    Aggregation,
    Bank,
    Calibration,
    ChunkScorer,
    EncodedQuestion,
    Encoding,
    Source,
    TokenSet,
    get_scorer,
)
from x2l_cluster.types import COARSE, FINE, check_name

SPEC = ModelSpec(
    family="tiny",
    weights="w" * 16,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=8,
    axes=3,
    max_position=4096,
    group_frames=2,
)
HIDDEN = 12
CALIBRATION = Calibration(
    weights=SPEC.weights,
    heads=((2, 3), (0, 1), (2, 2)),
    rotation=True,
    tokens=TokenSet.CONTENT,
    aggregation=Aggregation.MAX,
    encoding=Encoding.OVER_COARSE,
    margins=((12, 1.0), (36, 2.0)),
)
NAMES = [*SCORERS, "calibrated without calibration"]


def rotate(keys: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
    """A plain RoPE on the first axis."""
    angles = coords[:, :1] * 10000 ** -(torch.arange(4) / 4)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    first, second = keys.float().chunk(2, dim=-1)
    return (keys.float() * cos + torch.cat((-second, first), -1) * sin).to(keys.dtype)


def scorer(name: str) -> ChunkScorer:
    if name == "calibrated without calibration":
        return get_scorer("calibrated", SPEC)
    return get_scorer(name, SPEC, CALIBRATION, needed={2, 4})


def video(chunks: int = 5, dtype: torch.dtype = torch.float32) -> list[KVBlock]:
    return [
        raw_block(groups=2 + (i == 1), layers=3, heads=2, dim=8, seed=i, start=40.0 * i, dtype=dtype)
        for i in range(chunks)
    ]


def visual(seed: int) -> torch.Tensor:
    return torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(seed))


def bank_of(one: ChunkScorer, blocks: list[KVBlock]) -> Bank:
    spec = COARSE if one.source is Source.COARSE else FINE
    stored = [compress(block, spec, "float16") for block in blocks]
    parts = [] if one.source is Source.NONE else [one.index(b, visual(i)) for i, b in enumerate(stored)]
    return one.bank(tuple(range(len(blocks))), parts)


def question(layers: frozenset[int], seed: int = 0, tokens: int = 6, text: str = "video/what?") -> EncodedQuestion:
    gen = torch.Generator().manual_seed(1000 + seed)
    return EncodedQuestion(
        coords=500 + torch.arange(tokens).float()[:, None].expand(tokens, 3),
        question=(1, 2, 3, 4),
        content=(2, 4),
        last=(tokens - 1,),
        embedding=torch.randn(tokens, HIDDEN, generator=gen),
        rotate=rotate,
        heads_per_kv=2,
        queries={layer: torch.randn(4, tokens, 8, generator=gen) for layer in sorted(layers)},
        seed=text,
    )


@pytest.mark.parametrize("name", NAMES)
def test_one_finite_float32_score_a_chunk(name: str) -> None:
    one = scorer(name)
    bank = bank_of(one, video())
    assert bank.chunks == (0, 1, 2, 3, 4)
    scores = one.score(question(one.layers), bank)
    assert scores.shape == (5,)
    assert scores.dtype is torch.float32
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunks", [0, 1])
def test_short_videos_are_scored_too(name: str, chunks: int) -> None:
    one = scorer(name)
    scores = one.score(question(one.layers), bank_of(one, video(chunks)))
    assert scores.shape == (chunks,)
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize("name", NAMES)
def test_equal_input_gives_equal_features_and_scores(name: str) -> None:
    one = scorer(name)
    blocks = [compress(block, FINE, "float16") for block in video(1)]
    first, again = (one.index(blocks[0], visual(0)) for _ in range(2))
    assert first.meta == again.meta
    for key, tensor in first.tensors.items():
        assert tensor.numpy().tobytes() == again.tensors[key].numpy().tobytes()
    scores = [one.score(question(one.layers), bank_of(one, video())) for _ in range(2)]
    assert torch.equal(*scores)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_scorer_says_of_itself_holds_together(name: str) -> None:
    one = scorer(name)
    assert (one.kind is not None) is (one.source is Source.STORED)
    if one.kind:
        assert one.kind.startswith("x-")
        check_name("kind", one.kind)
    assert one.until == max(one.layers, default=-1) + 1 <= SPEC.layers
    assert (one.encoding is Encoding.NONE) is (not one.layers)
    if name == "calibrated without calibration":
        assert one.name == "coarse"
        assert one.note is not None
        assert SPEC.weights in one.note
    else:
        assert one.name == name
        assert one.note is None


@pytest.mark.parametrize("name", ["calibrated", "coarse", "calibrated without calibration", "attention_mean"])
def test_head_scorers_find_the_chunk_that_holds_what_the_question_asks(name: str) -> None:
    one = scorer(name)
    asked = replace(question(one.layers), rotate=lambda keys, coords: keys)
    blocks = video()
    wanted = 3
    for layer in one.layers:
        sign = torch.randn(8, generator=torch.Generator().manual_seed(layer))
        asked.queries[layer][:, 1:5] += sign
        assert isinstance(blocks[wanted].keys, torch.Tensor)
        blocks[wanted].keys[layer] += 3 * sign
    assert int(one.score(asked, bank_of(one, blocks)).argmax()) == wanted


def test_calibrated_is_max_over_entries_mean_over_tokens_zscore_and_sum() -> None:
    one = scorer("calibrated")
    asked = question(one.layers)
    blocks = video()
    total = torch.zeros(5)
    for layer, head in CALIBRATION.heads:
        turned = rotate(asked.queries[layer][head, [2, 4]], asked.coords[[2, 4]])
        row = []
        for block in blocks:
            assert isinstance(block.keys, torch.Tensor)
            keys = rotate(block.keys[layer, head // 2], block.coords)
            row.append((turned @ keys.T * 8**-0.5).amax(1).mean())
        scores = torch.stack(row)
        total += (scores - scores.mean()) / scores.std(correction=0)
    # unpooled and unquantised here: the very same blocks as features
    bank = one.bank(range(5), [one.index(block) for block in blocks])
    torch.testing.assert_close(one.score(asked, bank), total, atol=0.05, rtol=0.05)


def test_attention_mean_is_softmax_mass_over_heads_layers_and_question_tokens() -> None:
    one = scorer("attention_mean")
    asked = question(one.layers)
    blocks = video()
    keys = torch.cat([b.keys for b in blocks], dim=2).repeat_interleave(2, dim=1)  # type: ignore[misc]
    coords = torch.cat([b.coords for b in blocks])
    mass = []
    for layer in range(3):
        turned = rotate(asked.queries[layer], asked.coords)[:, 1:5]
        attention = (turned @ rotate(keys[layer], coords).transpose(1, 2) * 8**-0.5).softmax(-1)
        mass.append(torch.stack([p.sum(-1) for p in attention.split([b.entries for b in blocks], dim=-1)], dim=-1))
    bank = one.bank(range(5), [one.index(block) for block in blocks])
    torch.testing.assert_close(one.score(asked, bank), torch.stack(mass).mean((0, 1, 2)))


def test_embedding_finds_the_group_most_like_the_content_words() -> None:
    one = scorer("embedding")
    asked = question(frozenset())
    groups = [visual(i) for i in range(5)]
    groups[2][1] = 7 * asked.embedding[[2, 4]].mean(0)
    block = video(1)[0]
    bank = one.bank(range(5), [one.index(block, g) for g in groups])
    assert int(one.score(asked, bank).argmax()) == 2
    with pytest.raises(UnsupportedModel):
        one.index(block, None)


def test_random_is_stable_for_a_question_and_differs_between_questions() -> None:
    one = scorer("random")
    short, long = (one.bank(range(n), ()) for n in (5, 9))
    asked, other = question(frozenset()), question(frozenset(), text="video/which?")
    assert torch.equal(one.score(asked, short), one.score(asked, long)[:5])
    assert not torch.equal(one.score(asked, short), one.score(other, short))


@pytest.mark.parametrize("chunks", [2, 7, 12, 36])
def test_uniform_stride_is_spread_for_every_k(chunks: int) -> None:
    one = scorer("uniform_stride")
    order = one.score(question(frozenset()), one.bank(range(chunks), ())).argsort(descending=True, stable=True)
    for k in range(1, chunks + 1):
        chosen = sorted([*order[:k].tolist(), chunks])
        assert max(b - a for a, b in itertools.pairwise(chosen)) <= 4 * chunks / k


def test_recent_and_oracle_know_what_they_want() -> None:
    recent, oracle = scorer("recent"), scorer("oracle")
    assert recent.score(question(frozenset()), recent.bank(range(4), ())).diff().min() > 0
    assert oracle.score(question(frozenset()), oracle.bank(range(5), ())).tolist() == [0, 0, 1, 0, 1]


def test_unknown_names_and_foreign_calibrations_are_refused() -> None:
    with pytest.raises(InvalidInput, match="calibrated, coarse"):
        get_scorer("best", SPEC)
    foreign = Calibration.from_dict(CALIBRATION.to_dict() | {"weights": "other"})
    for name in ("calibrated", "coarse"):
        with pytest.raises(CalibrationMissing, match="other"):
            get_scorer(name, SPEC, foreign)
    beyond = Calibration.from_dict(CALIBRATION.to_dict() | {"heads": [[3, 0]]})
    with pytest.raises(CalibrationMissing, match="beyond"):
        get_scorer("calibrated", SPEC, beyond)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_blocks_and_queries_are_scored_in_float32(dtype: torch.dtype) -> None:
    for name in ("calibrated", "coarse", "attention_mean"):
        one = scorer(name)
        asked = question(one.layers)
        half = replace(
            asked,
            embedding=asked.embedding.to(dtype),
            queries={layer: tensor.to(dtype) for layer, tensor in asked.queries.items()},
        )
        exact = one.score(asked, one.bank(range(5), [one.index(b) for b in video()]))
        close = one.score(half, one.bank(range(5), [one.index(b) for b in video(dtype=dtype)]))
        assert close.dtype is torch.float32
        torch.testing.assert_close(close, exact, atol=0.15, rtol=0.1)
