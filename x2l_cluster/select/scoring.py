"""The arithmetic of scoring: similarities, how they become a number a chunk, and all of it for all heads at once.

Notation: ``queries (heads, tokens, head_dim)``, ``keys (heads, entries, head_dim)``, scores ``(…, chunks)``, float32.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from x2l_cluster.select.features import Bank, Head
from x2l_cluster.select.question import Aggregation, EncodedQuestion, TokenSet


class Way(NamedTuple):
    """One way to use a head; what a calibration searches besides the heads themselves."""

    rotation: bool
    tokens: TokenSet
    aggregation: Aggregation


WAYS: tuple[Way, ...] = tuple(Way(*way) for way in product((False, True), TokenSet, Aggregation))
"""In the order of :func:`score_all`'s third axis."""


def per_token(queries: Tensor, keys: Tensor, bank: Bank, aggregation: Aggregation) -> Tensor:
    """What each token says about each chunk: queries and keys head by head → (heads, tokens, chunks).

    ``bank`` only says where chunks begin and end; its own keys are not read.
    """
    return _aggregate(_similarities(queries, keys), bank, aggregation)


def _similarities(queries: Tensor, keys: Tensor) -> Tensor:
    scale = queries.shape[-1] ** -0.5
    return torch.matmul(queries.float() * scale, keys.float().transpose(1, 2))


def _aggregate(similarities: Tensor, bank: Bank, aggregation: Aggregation) -> Tensor:
    if aggregation is Aggregation.MAX:
        return bank.by_chunk(similarities, float("-inf")).amax(-1)
    return bank.by_chunk(similarities.softmax(-1), 0.0).sum(-1)


def zscore(scores: Tensor) -> Tensor:
    """(..., chunks) to mean 0 and deviation 1 over the chunks, so that heads of any scale add up; ties become 0."""
    if scores.shape[-1] == 0:
        return scores
    centred = scores - scores.mean(-1, keepdim=True)
    deviation = centred.square().mean(-1, keepdim=True).sqrt()
    return torch.where(deviation > 1e-6 * scores.abs().amax(-1, keepdim=True), centred / deviation, 0.0)


def score_heads(question: EncodedQuestion, bank: Bank, heads: tuple[Head, ...], way: Way) -> Tensor:
    """Scores (heads, chunks), not yet comparable between heads, of query heads ``(layer, head)`` used one ``way``.

    The bank holds at least the KV heads they belong to, turned only if the way rotates. Heads of one layer are scored
    together.
    """
    chosen = list(question.tokens(way.tokens))
    rows = {head: row for row, head in enumerate(bank.heads)}
    out = torch.empty(len(heads), len(bank.chunks), device=bank.keys.device)
    coords = question.coords[chosen]
    for layer in sorted({layer for layer, _ in heads}):
        mine = [i for i, head in enumerate(heads) if head[0] == layer]
        queries = question.queries[layer][[heads[i][1] for i in mine]][:, chosen]
        used = [rows[layer, heads[i][1] // question.heads_per_kv] for i in mine]
        rows_used = sorted(set(used))
        keys = bank.keys[rows_used].float()
        queries = queries.float()
        if way.rotation:
            queries = question.rotate(queries, coords)
            keys = keys if bank.turned else question.rotate(keys, bank.coords)
        expanded = keys if used == rows_used else keys[[rows_used.index(row) for row in used]]
        out[mine] = per_token(queries, expanded, bank, way.aggregation).mean(1)
    return out


def score_all(question: EncodedQuestion, bank: Bank, rotated: Bank | None = None) -> Tensor:
    """All (query head × way) scores of one question over one video, (layers, heads, ways, chunks), for calibration.

    Args:
        question: with the queries of every layer the bank has.
        bank: all KV heads of those layers.
        rotated: ``bank.rotated(question.rotate)``; give it when many questions ask one video.

    Layers come in rising order, ways as in ``WAYS``. Not z-scored.
    """
    rotated = rotated or bank.rotated(question.rotate)
    layers = sorted({layer for layer, _ in bank.heads})
    sets = torch.zeros(len(TokenSet), question.coords.shape[0], device=bank.keys.device)
    for row, which in enumerate(TokenSet):
        chosen = list(question.tokens(which))
        sets[row, chosen] = 1 / len(chosen)
    used = sets.sum(0).nonzero()[:, 0]  # other tokens count nowhere
    out = []
    for layer in layers:
        parts = []
        for turned, source in ((False, bank), (True, rotated)):
            queries = question.queries[layer][:, used].float()
            if turned:
                queries = question.rotate(queries, question.coords[used])
            keys = source.layer(layer).float()
            keys = keys.repeat_interleave(queries.shape[0] // keys.shape[0], dim=0)
            similarities = _similarities(queries, keys)
            tokens = torch.stack([_aggregate(similarities, bank, how) for how in Aggregation], dim=1)
            parts.append(torch.einsum("st,hatc->hsac", sets[:, used], tokens))  # heads, sets, aggregations, chunks
        out.append(torch.stack(parts, dim=1).flatten(1, 3))
    return torch.stack(out)
