"""Scoring: which chunks a question is about, by the model's own heads (DESIGN §2.2 point 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from x2l_cluster.engine.assemble import Prefix
from x2l_cluster.engine.cache import ByteCache
from x2l_cluster.engine.place import Placement
from x2l_cluster.engine.read import Batch, Reader
from x2l_cluster.engine.turns import Turns
from x2l_cluster.errors import BlockCorrupt, BlockMissing
from x2l_cluster.kv.codec import decode_block
from x2l_cluster.models import Page, Prompt, Step, VideoLM, View
from x2l_cluster.select import Bank, ChunkScorer, EncodedQuestion, Encoding, Features, Source
from x2l_cluster.types import ChunkRow, Kind, Manifest

BankKey = tuple[str, str, str, int, str]


class Scoring:
    """Scores questions against videos; keeps the banks of hot videos.

    Args:
        turns: held during a forward.
        budget_bytes: what the banks kept hot may take.
    """

    def __init__(self, lm: VideoLM, reader: Reader, turns: Turns, *, budget_bytes: int) -> None:
        self._lm, self._reader, self._turns = lm, reader, turns
        self._banks: ByteCache[BankKey, Bank] = ByteCache(budget_bytes, lambda bank: bank.keys.nbytes)

    def scores(
        self,
        manifest: Manifest,
        prompts: Sequence[Prompt],
        seeds: Sequence[str],
        scorer: ChunkScorer,
        *,
        prefix: Prefix,
        coarse: Sequence[Page],
        where: Placement,
        end: float,
    ) -> list[Tensor]:
        """For each prompt, (chunks,) float32. Raises KVError when what the scorer needs cannot be had.

        Args:
            coarse: H of every chunk, resident and placed; ``where`` places the bank, ``end`` is the position behind it.
            seeds: names of the questions, for scorers that draw lots.
        """
        alone = scorer.encoding is Encoding.ALONE
        position = prefix.end if alone else end
        tokens = [self._lm.embed_text(prompt.suffix, position) for prompt in prompts]
        queries: Sequence[dict[int, Tensor] | object] = [{} for _ in prompts]
        if scorer.encoding is not Encoding.NONE:
            pages = [prefix.page] if alone else [prefix.page, *coarse]
            steps = [Step(tokens=item, view=View(pages)) for item in tokens]
            with self._turns:
                queries = self._lm.forward(steps, queries=scorer.layers, until=scorer.until).queries
        bank = self.bank(manifest, scorer, where)
        return [
            scorer.score(EncodedQuestion.of(prompt, item, seen, self._lm, seed), bank)  # type: ignore[arg-type]
            for prompt, item, seen, seed in zip(prompts, tokens, queries, seeds, strict=True)
        ]

    def bank(self, manifest: Manifest, scorer: ChunkScorer, where: Placement) -> Bank:
        """All chunks stacked, on the model's device, standing where the question sees them. Raises KVError."""
        chunks = [row.index for row in manifest.chunks]
        if scorer.source is Source.NONE:
            return scorer.bank(chunks, [])
        name = f"{scorer.kind or scorer.name}/{getattr(scorer, 'kv_heads', '')}/{scorer.rotates}"
        key = (
            manifest.tenant,
            manifest.video,
            manifest.recipe.digest,
            manifest.epoch * 2**32 + manifest.revision,
            name,
        )

        def make() -> Bank:
            kind = Kind.H if scorer.source is Source.COARSE else scorer.kind
            assert kind is not None
            wanted = [(row, kind if kind in row.blocks else Kind.L) for row in manifest.chunks]
            with self._reader.batch(manifest, wanted) as batch:
                bank = scorer.bank(chunks, [_features(batch, row, kind, scorer) for row in manifest.chunks])
            placed = replace(bank, coords=where(bank.coords)).to(self._lm.device)
            return placed.rotated(self._lm.rotate) if scorer.rotates else placed

        return self._banks.get(key, make)[0]

    def forget(self, tenant: str, video: str) -> None:
        self._banks.drop(lambda key: key[:2] == (tenant, video))


def _features(batch: Batch, row: ChunkRow, kind: str, scorer: ChunkScorer) -> Features:
    """As stored; what was indexed before this calibration is made from the stored fine block instead."""
    if scorer.source is Source.COARSE:
        return scorer.index(batch.use(row, kind, decode_block))
    try:
        return batch.features(row, kind)
    except (BlockMissing, BlockCorrupt):
        if kind == "x-embedding":
            raise
        return scorer.index(batch.use(row, Kind.L, decode_block))
