"""Scoring with queries and rotation of a real architecture, over features that went through the stored form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tiny import qwen3_vl
from x2l_cluster.compress import compress
from x2l_cluster.kv.codec import pack, unpack
from x2l_cluster.models import Step, View
from x2l_cluster.models.pages import Page
from x2l_cluster.select import Aggregation, Calibration, EncodedQuestion, Encoding, Features, TokenSet, get_scorer
from x2l_cluster.types import BlockKey, Level


@pytest.mark.parametrize("name", ["calibrated", "coarse", "attention_mean", "embedding"])
def test_scores_from_stored_features_equal_scores_from_fresh_ones(name: str) -> None:
    lm = qwen3_vl()
    recipe = lm.recipe(height=32, width=32, chunk_frames=4)
    prompt = lm.prompt("Which star is red?")
    start = lm.embed_text(prompt.prefix, 0.0)
    first = lm.forward([Step(tokens=start, view=_empty(lm))], keep_kv=True)
    prefix = Page(keys=lm.rotate(first.keys[0], start.coords), values=first.values[0])
    calibration = Calibration(
        weights=lm.spec.weights,
        heads=((1, 3), (2, 0)),
        rotation=True,
        tokens=TokenSet.CONTENT,
        aggregation=Aggregation.MAX,
        encoding=Encoding.ALONE,
        margins=((1, 1.0),),
    )
    scorer = get_scorer(name, lm.spec, calibration)

    rng = np.random.default_rng(0)
    fresh, position = [], start.end
    for i in range(3):
        frames = rng.integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
        tokens = lm.embed_chunk(frames, [4.0 * i + j for j in range(4)], position, recipe)
        position = tokens.end
        raw = lm.prefill(tokens, Level.L, View([prefix]))
        level = recipe.coarse if name in ("coarse", "attention_mean") else recipe.fine
        fresh.append(scorer.index(compress(raw, level, recipe.kv_dtype), tokens.visual))
    suffix = lm.embed_text(prompt.suffix, position)
    step = Step(tokens=suffix, view=View([prefix]))
    queries = lm.forward([step], queries=scorer.layers, until=scorer.until).queries[0] if scorer.layers else {}
    asked = EncodedQuestion.of(prompt, suffix, queries, lm, "v/q")

    key = BlockKey(tenant="local", video="v", recipe=recipe.digest, epoch=1, kind=scorer.kind or "x-none", chunk=0)
    stored = [Features(*unpack(pack(part.tensors, part.meta, key), key)) for part in fresh]
    scores = scorer.score(asked, scorer.bank(range(3), fresh))
    assert scores.shape == (3,)
    assert scores.unique().numel() == 3
    assert torch.equal(scores, scorer.score(asked, scorer.bank(range(3), stored)))


def _empty(lm: object) -> View:
    spec = lm.spec  # type: ignore[attr-defined]
    nothing = torch.zeros(spec.layers, spec.kv_heads, 0, spec.head_dim)
    return View([Page(keys=nothing, values=nothing)])
