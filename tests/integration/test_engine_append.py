"""Recordings that grow: what is appended is indexed as if it had been there from the beginning."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engines import SMALL, engine, files, mosaic
from tests.growing import cut, recording, remuxed
from tests.tiny import qwen3_vl, two_pass
from x2l_cluster.errors import Cancelled, InvalidInput, NotAContinuation, StaleEpoch, UnknownVideo, VideoError
from x2l_cluster.types import ChunkRow, IndexStatus, Manifest, Sampling

EACH = SMALL | {"sampling": Sampling(fps=2.0)}
"""Every frame is looked at, the torn ones too."""
QUESTION = "What is it?"


@pytest.fixture(scope="module")
def lm():
    return qwen3_vl(0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return recording(tmp_path_factory.mktemp("recording"), 20)


@pytest.fixture(scope="module")
def at_once(whole, lm) -> Manifest:
    with engine(lm=lm) as x2l:
        return x2l.index(whole, **EACH)


def rows(manifest: Manifest) -> list[tuple[ChunkRow, dict[str, tuple[int, str, int]]]]:
    """All that is indexed, but for where it lies."""
    return [
        (
            replace(row, blocks={}),
            {kind: (ref.size_bytes, ref.checksum, ref.entries) for kind, ref in row.blocks.items()},
        )
        for row in manifest.chunks
    ]


def same(one: Manifest, other: Manifest) -> bool:
    return (rows(one), one.info, one.status, one.tail) == (rows(other), other.info, other.status, other.tail)


@pytest.mark.parametrize("share", [0.06, 0.2, 0.42, 0.61, 0.9])
def test_what_grew_is_indexed_as_if_it_had_been_there_at_once(whole, at_once, lm, share):
    """Wherever it was cut: in a chunk, in a group, in the packet of a frame."""
    with engine(lm=lm) as x2l:
        short = x2l.index(cut(whole, share), **EACH)
        events = []
        grown = x2l.append(short.video, whole, progress=events.append)
        assert same(grown, at_once)
        assert (grown.video, grown.source.id) == (short.video, at_once.source.id)
        assert set(x2l.stores.kv.keys("local", grown.video)) == grown.named
        assert x2l.ask(grown, QUESTION, detail="k=2").covered == at_once.span
        kept = [event.chunk for event in events if event.resumed]
        full = [row.index for row in short.chunks if row.frames == EACH["chunk_frames"]]
        assert kept[: len(full) - 2] == full[:-2]  # the last ones may have been torn


@pytest.mark.parametrize("family", ["two passes", "bounded memory"])
def test_it_may_grow_again_and_again(whole, lm, family):
    """Several times, by random amounts, whatever the past is made of."""
    lm = two_pass() if family == "two passes" else lm
    recipe = EACH | ({"memory_entries": 12} if family == "bounded memory" else {})
    shares = sorted(random.Random(1).uniform(0.07, 1.0) for _ in range(3))
    with engine(lm=lm) as x2l, engine(lm=lm) as other:
        video = x2l.index(cut(whole, shares[0]), **recipe).video
        for share in [*shares[1:], 1.0]:
            grown = x2l.append(video, cut(whole, share) if share < 1 else whole)
        assert same(grown, other.index(whole, **recipe))
        assert set(x2l.stores.kv.keys("local", video)) == grown.named


def test_growing_again_and_again_leaves_no_more_segments_than_one_run_would(whole, lm):
    def segments(x2l, video: str) -> list[str]:
        return sorted(key.kind for key in x2l.stores.kv.keys("local", video) if key.kind.endswith("-seg"))

    with engine(lm=lm) as x2l, engine(lm=lm) as other:
        video = x2l.index(cut(whole, 0.3), **EACH).video
        for share in (0.5, 0.75):
            x2l.append(video, cut(whole, share))
        x2l.append(video, whole)
        assert segments(x2l, video) == segments(other, other.index(whole, **EACH).video)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(40))
def test_soak_wherever_it_is_cut(whole, at_once, lm, seed):
    rng = random.Random(seed)
    shares = sorted(rng.uniform(0.07, 1.0) for _ in range(rng.randint(1, 4)))
    with engine(lm=lm) as x2l:
        video = x2l.index(cut(whole, shares[0]), **EACH).video
        for share in shares[1:]:
            x2l.append(video, cut(whole, share))
        assert same(x2l.append(video, whole), at_once)


@pytest.mark.parametrize("until_s", [8.0, 9.5])
def test_a_file_that_was_written_anew_is_compared_frame_by_frame(tmp_path, lm, until_s):
    """Its bytes have nothing in common with those of the shorter one: an index of packets in front, say."""
    longer = recording(tmp_path, 14, suffix=".mp4")
    with engine(lm=lm) as x2l, engine(lm=lm) as other:
        short = x2l.index(remuxed(longer, tmp_path / "short.mp4", until_s), **EACH)
        grown = x2l.append(short.video, longer)
        assert same(grown, other.index(longer, **EACH))


def test_a_full_last_chunk_that_stays_is_not_made_again(tmp_path, lm):
    """Only where it ends may be another moment: that of the frame that came."""
    longer = recording(tmp_path, 14, suffix=".mp4")
    with engine(lm=lm) as x2l:
        short = x2l.index(remuxed(longer, tmp_path / "short.mp4", 8.0), **EACH)
        assert short.chunks[-1].frames == EACH["chunk_frames"]
        events = []
        grown = x2l.append(short.video, longer, progress=events.append)
        assert [event.chunk for event in events if event.resumed] == [row.index for row in short.chunks]
        assert [row.blocks["l"].epoch for row in grown.chunks[: len(short.chunks)]] == [short.epoch] * len(short.chunks)


KILLED = """
import os, signal, sys
from tests.engines import engine
chunk = int(sys.argv[4])
def die(event):
    if event.chunk == chunk and not event.resumed:
        os.kill(os.getpid(), signal.SIGKILL)
with engine(f"disk:{sys.argv[1]}") as x2l:
    x2l.append(sys.argv[2], sys.argv[3], progress=die)
"""


@pytest.mark.parametrize("beyond", [0, 1, 3])
def test_killed_while_it_grows_it_goes_on_behind_the_last_chunk(whole, at_once, lm, tmp_path, beyond):
    """At the chunk that is made again, and at later ones."""
    store = tmp_path / "store"
    with engine(f"disk:{store}", lm=lm) as x2l:
        short = x2l.index(cut(whole, 0.46), **EACH)
    chunk = len(short.chunks) - 1 + beyond
    command = [sys.executable, "-c", KILLED, str(store), short.video, str(whole), str(chunk)]
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
    with engine(f"disk:{store}", lm=lm) as x2l:
        half = x2l.manifest(short.video)
        assert (half.status, half.tail) == (IndexStatus.GROWING, 0)
        assert x2l.ask(half, QUESTION).covered == half.span
        events = []
        grown = x2l.append(short.video, whole, progress=events.append)
        assert [event.chunk for event in events if event.resumed] == list(range(chunk + 1))
        assert same(grown, at_once)
        assert set(x2l.stores.kv.keys("local", grown.video)) == grown.named
        assert files(store / "sources") == [f"local/{grown.source.id}"]


def test_cancelled_before_anything_came_it_is_asked_about_as_it_was_and_goes_on(whole, at_once, lm):
    cancel = threading.Event()
    with engine(lm=lm) as x2l:
        short = x2l.index(cut(whole, 0.46), **EACH)
        before = x2l.ask(short.video, QUESTION, detail="fine").text
        with pytest.raises(Cancelled):
            x2l.append(short.video, whole, cancel=cancel, progress=lambda _: cancel.set())
        half = x2l.manifest(short.video)
        assert (half.status, half.tail, half.span) == (IndexStatus.GROWING, 1, short.span)
        assert rows(half) == rows(short)
        assert x2l.ask(short.video, QUESTION, detail="fine").text == before
        assert same(x2l.append(short.video, whole), at_once)


def test_cancelled_while_it_is_compared_nothing_has_changed(whole, lm):
    cancel = threading.Event()
    cancel.set()
    with engine(lm=lm) as x2l:
        short = x2l.index(cut(whole, 0.46), **EACH)
        with pytest.raises(Cancelled, match="nothing of it has changed"):
            x2l.append(short.video, whole, cancel=cancel)
        assert x2l.manifest(short.video) == short


def test_what_is_kept_hot_of_the_last_chunk_is_never_that_of_before(whole, lm):
    """Pages, score indexes, plans: after it grew, a video is answered as one that was whole from the beginning."""
    detail = {"detail": "k=3"}
    with engine(lm=lm) as x2l, engine(lm=lm) as other:
        video = x2l.index(cut(whole, 0.46), **EACH).video
        fresh = other.index(whole, **EACH)
        for question in (QUESTION, "Which colour is last?"):
            for mode in ("fine", "k=3", "coarse"):
                x2l.ask(video, question, detail=mode)  # all of it is hot now
        x2l.answerer.forget = lambda *_: None  # nobody tells another process that a video has grown
        x2l.append(video, whole)
        for question in (QUESTION, "Which colour is last?"):
            for mode in ("fine", "k=3", "coarse"):
                ours, theirs = (e.ask(v, question, detail=mode) for e, v in ((x2l, video), (other, fresh)))
                assert (ours.text, ours.plan, ours.covered) == (theirs.text, theirs.plan, theirs.covered)
        assert x2l.explain(video, QUESTION, **detail) == other.explain(fresh, QUESTION, **detail)


@pytest.mark.parametrize("other", ["another recording", "shorter, of another", "changed in the middle"])
def test_a_file_that_is_no_continuation_is_refused_and_nothing_changes(whole, lm, tmp_path, other):
    with engine(f"disk:{tmp_path / 'store'}", lm=lm) as x2l:
        short = x2l.index(cut(whole, 0.9), **EACH)
        kept = files(tmp_path / "store")
        if other == "changed in the middle":
            film = recording(tmp_path, 20, seed=0)
            data = bytearray(film.read_bytes())
            data[len(data) // 4 : len(data) // 4 + 2000] = bytes(2000)
            film.write_bytes(data)
        else:
            film = recording(tmp_path, 20 if other == "another recording" else 3, seed=7)
        with pytest.raises(NotAContinuation, match=r"at \d+\.\d\d s .* append a file") as caught:
            x2l.append(short.video, film)
        assert (caught.value.http_status, caught.value.retryable) == (422, False)
        assert x2l.manifest(short.video) == short
        assert files(tmp_path / "store") == kept


def test_a_recipe_that_spreads_its_frames_cannot_grow(whole, lm):
    with engine(lm=lm) as x2l:
        video = x2l.index(cut(whole, 0.5), **(SMALL | {"sampling": Sampling(count=9)})).video
        with pytest.raises(InvalidInput, match="frames a second instead of a count"):
            x2l.append(video, whole)
        with pytest.raises(UnknownVideo):
            x2l.append("nobody", whole)


def test_nothing_new_is_no_work(whole, at_once, lm):
    """The same file, or an earlier state of it."""
    with engine(lm=lm) as x2l:
        first = x2l.index(whole, **EACH)
        events = []
        for file in (whole, cut(whole, 0.5), cut(whole, 0.97)):
            assert x2l.append(first.video, file, progress=events.append) == first
        assert events == []


def test_the_shorter_file_is_known_as_the_recording_it_has_become(whole, at_once, lm, tmp_path):
    part = cut(whole, 0.5)
    with engine(f"disk:{tmp_path}", lm=lm) as x2l:
        short = x2l.index(part, **EACH)
        grown = x2l.append(short.video, whole)
        assert files(tmp_path / "sources") == [f"local/{grown.source.id}"]
        assert x2l.index(part, **EACH) == x2l.index(whole, **EACH) == grown
        assert files(tmp_path / "sources") == [f"local/{grown.source.id}"]
        with pytest.raises(InvalidInput, match="taken by another file"):
            x2l.index(mosaic(tmp_path / "other.mp4", 5, seed=3), video=short.video, **EACH)
        assert x2l.delete(short.video) > 0
        assert files(tmp_path / "sources") == []
        assert files(tmp_path / "state") == []


def test_another_recipe_of_a_recording_that_grew_is_gone_on_with_by_itself(whole, lm):
    part, coarser = cut(whole, 0.5), EACH | {"chunk_frames": 8}
    with engine(lm=lm) as x2l:
        video = x2l.index(part, **coarser).video
        x2l.index(part, **EACH)
        x2l.append(video, whole)
        with pytest.raises(InvalidInput, match="before it grew"):
            x2l.index(whole, video=video, **coarser)


def test_a_new_part_that_cannot_be_read_leaves_the_video_ready_and_says_why(whole, lm):
    with engine(lm=lm) as x2l:
        short = x2l.index(cut(whole, 0.46), **EACH)
        last = len(short.chunks)

        def broken(event) -> None:
            if event.chunk == last and not event.resumed:
                raise VideoError("the picture changes its shape")

        with pytest.raises(VideoError, match="changes its shape"):
            x2l.append(short.video, whole, progress=broken)
        left = x2l.manifest(short.video)
        assert (left.status, len(left.chunks)) == (IndexStatus.READY, last + 1)
        assert "changes its shape" in left.info.partial
        assert x2l.ask(left, QUESTION).covered == left.span


def test_of_two_who_append_at_once_the_later_one_goes_on(whole, at_once, lm, tmp_path):
    """The earlier one is told, and publishes nothing more; what it sealed is gone on with."""
    part = cut(whole, 0.46)
    with engine(f"disk:{tmp_path}", lm=lm) as one, engine(f"disk:{tmp_path}", lm=lm) as other:
        video = one.index(part, **EACH).video
        longer, made = cut(whole, 0.7), []

        def overtaken(event) -> None:
            if not event.resumed and not made:
                made.append(other.append(video, whole))

        with pytest.raises(StaleEpoch):
            one.append(video, longer, progress=overtaken)
        assert same(made[0], at_once)
        assert one.append(video, longer) == made[0], "it has all of that already"


def test_blobs_of_an_append_that_died_before_publishing_are_swept_by_the_next(whole, at_once, lm, tmp_path):
    with engine(f"disk:{tmp_path}", lm=lm) as x2l:
        short = x2l.index(cut(whole, 0.46), **EACH)
        last = len(short.chunks) - 1
        seal = x2l.stores.state.seal

        def die(*_):
            raise KeyboardInterrupt

        x2l.stores.state.seal = die
        with pytest.raises(KeyboardInterrupt):
            x2l.append(short.video, whole)
        x2l.stores.state.seal = seal
        assert {key.chunk for key in set(x2l.stores.kv.keys("local", short.video)) - short.named} == {last}
        assert same(x2l.append(short.video, whole), at_once)
        assert set(x2l.stores.kv.keys("local", short.video)) == x2l.manifest(short.video).named


def test_a_question_that_was_on_its_way_when_the_last_chunk_was_replaced_is_answered_as_it_is_now(whole, at_once, lm):
    """Its manifest names blobs that are gone by the time it reads them: none of them lie in a segment with others."""
    with engine(lm=lm, stripe_bytes=2 << 10) as x2l:
        short = x2l.index(cut(whole, 0.46), **EACH)
        grown = x2l.append(short.video, whole)
        answer = x2l.ask(short, QUESTION, detail="k=2")
        assert (answer.covered, answer.degraded) == (grown.span, False)
        assert answer.text == x2l.ask(grown, QUESTION, detail="k=2").text


def test_questions_about_a_video_and_about_the_one_that_took_its_id_share_nothing(whole, lm):
    """Revisions count from one again: two manifests of one id and one revision may be of different videos."""
    from x2l_cluster.engine.work import shared

    with engine(lm=lm) as x2l:
        before = x2l.index(cut(whole, 0.46), video="v", **EACH)
        asked = [x2l.asked(before, QUESTION)]
        x2l.delete("v")
        after = x2l.index(cut(whole, 0.46), video="v", **EACH)
        asked.append(x2l.asked(after, QUESTION))
        assert before.revision == after.revision
        assert shared(asked[0]) != shared(asked[1])
        assert x2l.ask(after, QUESTION).video == "v"
