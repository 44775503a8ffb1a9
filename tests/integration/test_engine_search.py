"""Searching many videos: by score indexes alone, comparable between videos, one bad video skipped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.engines import SMALL, calibration, engine, mosaic
from tests.tiny import qwen3_vl
from x2l_cluster.engine import Stores, VideoEngine
from x2l_cluster.errors import UnknownVideo
from x2l_cluster.kv.store import KVStore
from x2l_cluster.metrics import kind_of
from x2l_cluster.select import Aggregation
from x2l_cluster.types import Kind

QUESTION = "What code is shown with the red star?"


class Noted:
    """A store that notes the kinds that are read."""

    def __init__(self, inner: KVStore) -> None:
        self._inner = inner
        self.read: set[str] = set()

    def fetch(self, key, into=None, **options):
        self.read.add(kind_of(key.kind))
        return self._inner.fetch(key, into, **options)

    def get(self, key, into=None, **options):
        self.read.add(kind_of(key.kind))
        return self._inner.get(key, into, **options)

    def __getattr__(self, name: str):
        return getattr(self._inner, name)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    first, second = (mosaic(folder / f"{n}.mp4", 12 + 4 * n, seed=n) for n in range(2))
    twin = folder / "twin.mp4"
    twin.write_bytes(first.read_bytes() + b"\0\0\0\x08free")  # other content, the same pictures
    return [first, second, twin]


@pytest.fixture
def x2l(films) -> VideoEngine:
    stores = Stores.open("memory:")
    stores = replace(stores, kv=Noted(stores.kv))
    lm = qwen3_vl(0)
    with VideoEngine(lm, stores, calibration=calibration(lm)) as made:
        for name, film in zip(("first", "second", "twin"), films, strict=True):
            made.index(film, video=name, **SMALL)
        made.stores.kv.read.clear()
        yield made


def test_equal_moments_of_different_videos_score_equally_and_no_kvs_are_read(x2l):
    hits, skipped = x2l.search(QUESTION, ["first", "second", "twin"], limit=100)
    scores = {(hit.video, hit.chunk): hit.score for hit in hits}
    assert skipped == {} and len(scores) == sum(len(x2l.manifest(v).chunks) for v in ("first", "second", "twin"))
    assert [scores["first", n] for n in range(3)] == pytest.approx([scores["twin", n] for n in range(3)])
    assert len({round(score, 6) for score in scores.values()}) > 3
    assert x2l.stores.kv.read == {Kind.INDEX}


def test_the_best_moments_do_not_depend_on_how_many_are_asked_for(x2l):
    everything, _ = x2l.search(QUESTION, ["first", "second"], limit=100)
    assert x2l.search(QUESTION, ["first", "second"], limit=3)[0] == everything[:3]
    assert [hit.score for hit in everything] == sorted((hit.score for hit in everything), reverse=True)


def test_a_video_whose_score_index_and_fine_blocks_are_gone_is_skipped_with_the_reason(x2l):
    manifest = x2l.manifest("second")
    kinds = [kind for kind in manifest.chunks[0].blocks if kind != Kind.H]
    x2l.stores.kv.delete(
        {key for row in manifest.chunks for kind in kinds for key in manifest.keys(row.blocks[kind], row.index)}
    )
    hits, skipped = x2l.search(QUESTION, ["first", "second"], limit=100)
    assert {hit.video for hit in hits} == {"first"}
    assert {video: error.code for video, error in skipped.items()} == {"second": "block_missing"}


def test_a_search_after_questions_of_a_rotating_scorer_is_the_same_search(films):
    lm = qwen3_vl(0)
    turning = replace(calibration(lm), rotation=True, aggregation=Aggregation.MASS)
    found = []
    for asks_first in (False, True):
        with engine(lm=lm, calibration=turning) as x2l:
            x2l.index(films[0], video="first", **SMALL)
            if asks_first:
                x2l.explain("first", QUESTION)
            found.append(x2l.search(QUESTION, ["first"], limit=100)[0])
    assert found[0] == found[1]


def test_without_a_calibration_the_embeddings_are_searched(films):
    with engine(lm=qwen3_vl(0), calibration=None) as x2l:
        for name, film in zip(("first", "twin"), (films[0], films[2]), strict=True):
            x2l.index(film, video=name, **SMALL)
        hits, skipped = x2l.search(QUESTION, ["first", "twin"], limit=100)
        scores = {(hit.video, hit.chunk): hit.score for hit in hits}
        assert skipped == {}
        assert [scores["first", n] for n in range(3)] == pytest.approx([scores["twin", n] for n in range(3)])


def test_an_index_of_another_model_is_skipped_and_an_unknown_video_is_an_error(x2l, films):
    other = qwen3_vl(1)
    with VideoEngine(other, x2l.stores, calibration=calibration(other)) as second:
        hits, skipped = second.search(QUESTION, ["first"], limit=10)
        assert (hits, {video: error.code for video, error in skipped.items()}) == ([], {"first": "model_mismatch"})
        with pytest.raises(UnknownVideo):
            second.search(QUESTION, ["none"], limit=10)
