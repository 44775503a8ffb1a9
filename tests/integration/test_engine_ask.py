"""Asking through the whole path: levels, plans, faults, threads."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.engines import SMALL, calibration, engine, mosaic
from tests.tiny import qwen3_vl, two_pass
from x2l_cluster.engine import Assembler, Decoder, Generation, Prefiller, Prefix, VideoEngine
from x2l_cluster.engine.read import READERS
from x2l_cluster.errors import (
    BlockCorrupt,
    BlockMissing,
    InvalidInput,
    InvalidQuestion,
    KVMissing,
    ModelMismatch,
    PromptTooLong,
    StoreUnavailable,
    UnknownVideo,
)
from x2l_cluster.models import Stretch, View
from x2l_cluster.select import SCORERS
from x2l_cluster.types import Kind, Level, Positions, Tier
from x2l_cluster.video import chunked, open_video

QUESTION = "What code is shown with the red star?"
WRITE = Generation(max_tokens=12, ignore_stop_ids=True)


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return mosaic(tmp_path_factory.mktemp("film") / "film.mp4", 30)


@pytest.fixture(scope="module")
def lm():
    return qwen3_vl(0)


@pytest.fixture(scope="module")
def x2l(lm) -> VideoEngine:
    """Shared by the tests that leave it as it was."""
    with engine(lm=lm) as made:
        yield made


@pytest.fixture(scope="module")
def manifest(x2l, film):
    return x2l.index(film, **SMALL)


@pytest.fixture
def own(lm, film):
    """(engine, manifest) for tests that break something, or want nothing hot."""
    with engine(lm=lm) as made:
        yield made, made.index(film, **SMALL)


def by_hand(lm, film, recipe, level: Level) -> str:
    """Every chunk at one level, without stores, plans or pages shared."""
    prefix = Prefix.of(lm, lm.prompt("?").prefix)
    with open_video(film, recipe.sampling) as stream:
        done = list(Prefiller(lm, recipe, prefix).run(chunked(stream, chunk_frames=recipe.chunk_frames)))
    blocks = [item.blocks[level] for item in done]
    pages, end = Assembler(lm).pages(blocks, recipe.positions, anchor=prefix.end, end=done[-1].position_end)
    decoder = Decoder(lm)
    stream = decoder.join(View([prefix.page, *pages]), lm.embed_text(lm.prompt(QUESTION).suffix, end), WRITE)
    list(decoder.run())
    return stream.text.strip()


@pytest.mark.parametrize("positions", list(Positions))
def test_every_chunk_selected_is_all_fine_and_none_is_all_coarse(x2l, lm, film, positions):
    manifest = x2l.index(film, positions=positions, **SMALL)
    fine, coarse = (by_hand(lm, film, manifest.recipe, level) for level in (Level.L, Level.H))
    assert fine != coarse

    def ask(detail: str) -> str:
        return x2l.ask(manifest, QUESTION, detail=detail, generation=WRITE).text

    assert ask("fine") == ask(f"k={len(manifest.chunks)}") == fine
    assert ask("coarse") == ask("k=0") == coarse


def test_an_answer_tells_plan_evidence_and_cost(own):
    x2l, manifest = own
    answer = x2l.ask(manifest, QUESTION, detail="k=2", generation=WRITE)
    assert len(answer.plan.fine) == len(answer.evidence) == 2
    assert {e.chunk for e in answer.evidence} == set(answer.plan.fine)
    assert answer.evidence[0].score >= answer.evidence[1].score
    assert not answer.degraded
    assert answer.usage.reload_bytes == answer.plan.reload_bytes > 0
    assert 0 < answer.usage.kv_share < 1
    assert answer.covered == manifest.span
    assert set(answer.timings) >= {"score_s", "reload_s", "decode_s"}


def test_what_is_hot_need_not_travel(own):
    x2l, manifest = own
    first = x2l.ask(manifest, QUESTION, detail="k=2", generation=WRITE)
    again = x2l.ask(manifest, QUESTION, detail="k=2", generation=WRITE)
    assert again.usage.reload_bytes == 0
    assert {e.tier for e in again.evidence} == {Tier.DEVICE}
    assert {e.tier for e in first.evidence} == {Tier.HOST}
    assert again.text == first.text


def test_a_budget_is_never_exceeded(x2l, manifest):
    cheapest = min(row.blocks[Kind.L].size_bytes for row in manifest.chunks)
    for budget in (0, cheapest - 1, cheapest, 3 * cheapest + 5):
        plan = x2l.explain(manifest, QUESTION, detail=f"budget={budget}")
        assert plan.reload_bytes <= budget
        assert bool(plan.fine) == (budget >= cheapest)


def test_a_named_time_pins_its_chunk(x2l, manifest):
    plan = x2l.explain(manifest, "What is shown at 0:21?", detail="k=1")
    (chunk,) = plan.fine
    assert manifest.chunks[chunk].span.holds(21)


@pytest.mark.parametrize("scorer", [name for name in SCORERS if name != "oracle"])
def test_every_scorer_plans(x2l, manifest, scorer):
    plan = x2l.explain(manifest, QUESTION, detail="k=2", scorer=scorer)
    assert (plan.scorer, len(plan.fine)) == (scorer, 2)


def test_the_oracle_reloads_what_it_is_told(x2l, manifest):
    answer = x2l.ask(manifest, QUESTION, detail="k=2", scorer="oracle", chunks=[1, 4], generation=WRITE)
    assert answer.plan.fine == (1, 4)


def test_a_model_without_calibration_scores_over_coarse_keys_and_says_so(lm, film):
    with engine(lm=lm, calibration=None) as x2l:
        plan = x2l.explain(x2l.index(film, **SMALL), QUESTION)
    assert plan.scorer == "coarse"


def test_a_new_calibration_needs_no_new_prefill(lm, film, tmp_path):
    """The score index made from stored fine blocks gives the very scores of the one made at index time."""
    with engine(f"disk:{tmp_path / 'a'}", lm=lm, calibration=None) as early:
        video = early.index(film, **SMALL).video
    with engine(f"disk:{tmp_path / 'a'}", lm=lm) as later, engine(lm=lm) as fresh:
        expected = fresh.explain(fresh.index(film, **SMALL), QUESTION, detail="k=1")
        plan = later.explain(video, QUESTION, detail="k=1")
    assert plan.scorer == "calibrated"
    assert [chunk.score for chunk in plan.chunks] == [chunk.score for chunk in expected.chunks]


def break_blocks(x2l: VideoEngine, manifest, kind: str, how: str, chunk: int) -> None:
    """Of a block that lies in a segment with others, "missing" takes the whole segment."""
    row = manifest.chunks[chunk]
    ref = row.blocks[kind]
    key = manifest.keys(ref, row.index)[-1]
    if how == "missing":
        x2l.stores.kv.delete([key])
    else:
        blob = bytearray(x2l.stores.kv.get(key))
        if how == "truncated":
            blob = blob[: len(blob) // 2]
        elif how == "stale":
            other = manifest.chunks[(chunk + 1) % len(manifest.chunks)]
            blob = bytearray(x2l.stores.kv.get(manifest.keys(other.blocks[kind], other.index)[-1]))
        elif ref.packed is not None:
            blob[ref.packed.offset + ref.size_bytes * 3 // 4] ^= 0x10
        else:
            blob[len(blob) * 3 // 4] ^= 0x10
        x2l.stores.kv.put(key, blob)


@pytest.mark.parametrize("how", ["missing", "corrupt", "truncated", "stale"])
def test_a_fine_block_that_cannot_be_had_is_answered_coarse_and_flagged(own, how):
    """And exactly as if the plan had left that chunk coarse: never silently wrong."""
    x2l, manifest = own
    expected = x2l.ask(manifest, QUESTION, scorer="oracle", chunks=[1], detail="k=1", generation=WRITE)
    break_blocks(x2l, manifest, Kind.L, how, 3)
    answer = x2l.ask(manifest, QUESTION, scorer="oracle", chunks=[1, 3], detail="k=2", generation=WRITE)
    assert answer.degraded
    assert {e.chunk: e.degraded for e in answer.evidence} == {1: None, 3: "corrupt" if how == "truncated" else how}
    assert answer.text == expected.text


def test_on_request_a_missing_fine_block_fails_the_question(own):
    x2l, manifest = own
    break_blocks(x2l, manifest, Kind.L, "missing", 3)
    break_blocks(x2l, manifest, Kind.L, "corrupt", 4)
    with pytest.raises(BlockCorrupt):
        x2l.ask(manifest, QUESTION, scorer="oracle", chunks=[4], detail="k=1", on_missing="fail")
    with pytest.raises(BlockMissing, match="/l/3/"):
        x2l.ask(manifest, QUESTION, scorer="oracle", chunks=[3], detail="k=1", on_missing="fail")


@pytest.mark.parametrize("how", ["missing", "corrupt"])
def test_without_a_coarse_block_there_is_no_answer_but_an_error(own, how):
    x2l, manifest = own
    break_blocks(x2l, manifest, Kind.H, how, 2)
    with pytest.raises(KVMissing, match="chunk 2" if how == "corrupt" else "chunk 0") as caught:
        x2l.ask(manifest, QUESTION)
    assert caught.value.retryable


def test_questions_in_one_batch_get_the_answers_they_get_alone(x2l, manifest, tmp_path):
    other = x2l.index(mosaic(tmp_path / "other.mp4", 14, seed=9), **SMALL)
    asked = [(v, q) for v in (manifest, other) for q in (QUESTION, "When does the blue ring appear?", "How many?")]
    alone = [x2l.ask(v, q, generation=WRITE).text for v, q in asked]
    assert [answer.text for answer in x2l.ask_many(asked, generation=WRITE)] == alone
    assert len(set(alone)) > 3


def test_threads_with_different_questions_of_different_videos_get_the_answers_they_get_alone(x2l, manifest, tmp_path):
    other = x2l.index(mosaic(tmp_path / "other.mp4", 14, seed=9), **SMALL)
    asked = [(manifest, QUESTION), (other, "When does the blue ring appear?")]
    alone = [x2l.ask(v, q, detail="k=2", generation=WRITE).text for v, q in asked]
    texts: list[list[str]] = [[], []]
    gate = threading.Barrier(2)

    def go(which: int) -> None:
        gate.wait()
        for _ in range(8):
            texts[which].append(x2l.ask(*asked[which], detail="k=2", generation=WRITE).text)

    threads = [threading.Thread(target=go, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [[alone[0]] * 8, [alone[1]] * 8]


def test_a_half_indexed_video_answers_over_its_sealed_part(lm, film):
    cancel = threading.Event()
    with engine(lm=lm) as x2l:
        with pytest.raises(Exception, match="cancelled"):
            x2l.index(film, cancel=cancel, progress=lambda event: cancel.set() if event.chunk == 2 else None, **SMALL)
        answer = x2l.ask(x2l.videos()[0].video, QUESTION, generation=WRITE)
    assert answer.covered is not None
    assert answer.covered.end_s == 12
    assert len(answer.plan.chunks) == 3


def test_a_two_pass_family_indexes_and_answers(film):
    with engine(lm=two_pass(), calibration=None) as x2l:
        manifest = x2l.index(film, **SMALL)
        answers = {d: x2l.ask(manifest, QUESTION, detail=d, generation=WRITE).text for d in ("fine", "coarse", "k=1")}
    assert len(set(answers.values())) > 1


def test_earlier_turns_change_the_answer(x2l, manifest):
    plain = x2l.ask(manifest, QUESTION, detail="coarse", generation=WRITE)
    later = x2l.ask(manifest, QUESTION, detail="coarse", generation=WRITE, history=[("What is it?", "A mosaic.")])
    assert later.usage.prompt_tokens > plain.usage.prompt_tokens


@pytest.mark.parametrize(
    ("video", "question", "options", "expected"),
    [
        ("nobody", QUESTION, {}, UnknownVideo),
        (None, "", {}, InvalidQuestion),
        (None, "what <|video_pad|>", {}, InvalidQuestion),
        (None, "why? " * 2000, {}, PromptTooLong),
        (None, QUESTION, {"detail": "sharp"}, InvalidInput),
        (None, QUESTION, {"detail": "k=many"}, InvalidInput),
        (None, QUESTION, {"scorer": "magic"}, InvalidInput),
        (None, QUESTION, {"on_missing": "pray"}, InvalidInput),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(x2l, manifest, video, question, options, expected):
    with pytest.raises(expected):
        x2l.ask(video or manifest, question, **options)


def test_scaled_positions_stay_within_the_trained_range(film):
    """The same video and question: too long where it was, answered when scaled."""
    lm = qwen3_vl(0, max_position_embeddings=1024 + 256)
    with engine(lm=lm, calibration=calibration(lm)) as x2l:
        long_answer = Generation(max_tokens=1000)
        original = x2l.index(film, positions="original", **SMALL)
        assert original.chunks[-1].position_end > 256
        with pytest.raises(PromptTooLong):
            x2l.ask(original, QUESTION, generation=long_answer)
        scaled = x2l.index(film, positions="scaled", **SMALL)
        assert x2l.ask(scaled, QUESTION, detail="k=1", generation=long_answer).finish in ("stop", "length")


def test_times_are_repeated_in_the_video_s_clock_before_the_model_sees_them(x2l, manifest):
    plain = x2l.ask(manifest, "What is shown at noon?", detail="coarse", generation=WRITE)
    named = x2l.ask(manifest, "What is shown at 0:21?", detail="coarse", generation=WRITE)
    assert named.usage.prompt_tokens - plain.usage.prompt_tokens == len(" (21.0 seconds)")


def test_first_and_last_chunk_come_back_fine_where_the_recipe_says_so(lm, film):
    with engine(lm=lm) as x2l:
        manifest = x2l.index(film, edges_fine=True, **SMALL)
        plan = x2l.explain(manifest, QUESTION, detail="k=0")
    assert plan.fine == (0, len(manifest.chunks) - 1)


def test_an_index_of_another_model_is_not_used(film, tmp_path):
    with engine(f"disk:{tmp_path}", lm=qwen3_vl(0)) as first:
        video = first.index(film, **SMALL).video
        expected = first.ask(video, QUESTION, generation=WRITE).text
    with engine(f"disk:{tmp_path}", lm=qwen3_vl(1)) as second:
        with pytest.raises(ModelMismatch, match="tiny0"):
            second.ask(video, QUESTION)
        second.index(film, **SMALL)
        assert second.manifest(video).recipe.weights == "tiny1"
    with engine(f"disk:{tmp_path}", lm=qwen3_vl(0)) as again:
        assert again.ask(video, QUESTION, generation=WRITE).text == expected


def test_without_score_index_and_fine_blocks_a_question_is_scored_coarse_and_says_so(own):
    x2l, manifest = own
    for chunk in range(len(manifest.chunks)):
        break_blocks(x2l, manifest, Kind.L, "missing", chunk)
    break_blocks(x2l, manifest, next(k for k in manifest.chunks[0].blocks if k.startswith("x-") and k != "x-embedding"),
                 "missing", 2)  # fmt: skip
    answer = x2l.ask(manifest, QUESTION, detail="k=1", generation=WRITE)
    assert (answer.plan.scorer, answer.degraded) == ("coarse", True)
    assert answer.plan.note is not None
    assert "score index" in answer.plan.note


def test_compact_positions_serve_what_is_hot_from_what_is_hot(lm, film):
    with engine(lm=lm) as x2l:
        manifest = x2l.index(film, positions="compact", **SMALL)
        first = x2l.ask(manifest, QUESTION, detail="k=2", generation=WRITE)
        for chunk in first.plan.fine:
            break_blocks(x2l, manifest, Kind.L, "missing", chunk)
        again = x2l.ask(manifest, QUESTION, detail="k=2", generation=WRITE)
    assert (again.text, again.degraded, again.usage.reload_bytes) == (first.text, False, 0)


def test_a_store_that_hangs_is_waited_for_once_a_question(lm, film, monkeypatch):
    with engine(lm=lm) as x2l:
        manifest = x2l.index(film, **SMALL)
        asked = []
        fetch = x2l.stores.kv.get

        def hang(key, *into, **options):
            if key.kind == Kind.L:
                asked.append(key)
                raise StoreUnavailable("it hangs")
            return fetch(key, *into, **options)

        monkeypatch.setattr(x2l.stores.kv, "get", hang)
        answer = x2l.ask(manifest, QUESTION, detail="k=5", generation=WRITE)
    assert len(asked) <= READERS
    assert [e.degraded for e in answer.evidence] == ["unavailable"] * 5


def test_a_question_too_long_is_refused_before_it_is_read(x2l, manifest):
    begun = time.perf_counter()
    with pytest.raises(PromptTooLong):
        x2l.ask(manifest, "why? " * 4000)
    assert time.perf_counter() - begun < 5


def test_coarse_pages_are_laid_out_once_to_be_scored_and_answered_over(tmp_path, monkeypatch):
    made: list[Stretch] = []
    build = Stretch.__init__

    def counted(self, pages):
        made.append(self)
        build(self, pages)

    with engine() as x2l:
        video = x2l.index(mosaic(tmp_path / "film.mp4", 20), **SMALL).video
        monkeypatch.setattr(Stretch, "__init__", counted)
        x2l.ask_many([(video, "What is it?"), (video, "What code is shown?")], detail="k=1", generation=WRITE)
    assert len([stretch for stretch in made if len(stretch.pages) > 2]) == 1
