"""How blocks lie in the stores: whatever the layout, the answers are the same, and dying at any point loses nothing."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engines import SMALL, calibration, engine, mosaic
from tests.tiny import qwen3_vl, two_pass
from x2l_cluster.engine import Generation, Stores, VideoEngine
from x2l_cluster.errors import KVError, StaleEpoch, StoreFull, StoreUnavailable, UnknownVideo
from x2l_cluster.kv.memory import MemoryKV
from x2l_cluster.kv.routed import RoutedKV
from x2l_cluster.kv.store import ANY, Buffer, Fetched, Want
from x2l_cluster.types import BlockKey, IndexStatus, Kind, Level, Manifest, Positions

QUESTION = "What code is shown with the red star?"
WRITE = Generation(max_tokens=12, ignore_stop_ids=True)
TINY = 8 << 10
"""Fine blocks of the tiny models take three stripes of this, score indexes two segments."""
WAIT_S = 60.0


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mosaic(tmp_path_factory.mktemp("film") / "film.mp4", 15)


@pytest.fixture(scope="module")
def lm() -> Any:
    return qwen3_vl(0)


def stripes(manifest: Manifest, kind: str) -> int:
    return max(row.blocks[kind].stripes for row in manifest.chunks)


def segments(manifest: Manifest) -> Counter[str]:
    return Counter(key.kind for key in manifest.named if key.kind.endswith("-seg"))


class Spied(MemoryKV):
    """Memory that notes what is fetched, and is told before a fetch and after a put."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: Counter[BlockKey] = Counter()
        self.before_fetch: Callable[[BlockKey], None] = lambda _: None
        self.after_put: Callable[[BlockKey], None] = lambda _: None

    def fetch(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> Fetched:
        self.before_fetch(key)
        self.fetched[key] += 1
        return super().fetch(key, into, want=want)

    def put(self, key: BlockKey, blob: Buffer) -> None:
        super().put(key, blob)
        self.after_put(key)


@pytest.fixture
def spied(lm: Any) -> Iterator[tuple[VideoEngine, Spied]]:
    kv = Spied()
    with VideoEngine(lm, replace(Stores.open("memory:"), kv=kv), calibration=calibration(lm)) as made:
        yield made, kv


def again(x2l: VideoEngine) -> VideoEngine:
    """Another engine over the same stores, which it leaves open, with nothing hot."""
    return VideoEngine(x2l.lm, replace(x2l.stores, opened=ExitStack()), calibration=x2l.calibration)


def at_packing(x2l: VideoEngine, kv: Spied, do: Callable[[], None]) -> None:
    """Has ``do`` done when the first segment is stored and nobody knows of it yet."""

    def after_put(key: BlockKey) -> None:
        if key.kind.endswith("-seg"):
            kv.after_put = lambda _: None
            do()

    kv.after_put = after_put


# --- equal answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", list(Positions))
def test_answers_do_not_depend_on_how_blocks_are_cut(lm: Any, film: Path, positions: Positions) -> None:
    with engine(lm=lm) as plain, engine(lm=lm, stripe_bytes=TINY) as cut, engine(lm=lm, stripe_bytes=5000) as crumbs:
        expected = plain.index(film, positions=positions, **SMALL)
        assert stripes(expected, Kind.L) == 1
        for x2l in (cut, crumbs):
            manifest = x2l.index(film, positions=positions, **SMALL)
            assert stripes(manifest, Kind.L) > 2
            for detail in ("coarse", "k=2", "fine", "auto"):
                theirs = plain.ask(expected, QUESTION, detail=detail, generation=WRITE)
                ours = x2l.ask(manifest, QUESTION, detail=detail, generation=WRITE)
                assert (ours.text, ours.degraded, ours.plan.fine) == (theirs.text, False, theirs.plan.fine)
                assert [c.score for c in ours.plan.chunks] == [c.score for c in theirs.plan.chunks]


def test_pages_made_stripe_by_stripe_are_those_of_the_whole_block_bit_for_bit(lm: Any, film: Path) -> None:
    with engine(lm=lm) as plain, engine(lm=lm, stripe_bytes=5000) as crumbs:
        pages = []
        for x2l in (plain, crumbs):
            manifest = x2l.index(film, **SMALL)
            where = x2l.answerer._placement(manifest)
            found = [x2l.answerer._reloader.pages(manifest, manifest.chunks, level, where) for level in Level]
            pages.append([item.page for loaded in found for item in loaded])
        assert len(pages[0]) == 2 * len(manifest.chunks)
        for a, b in zip(*pages, strict=True):
            assert a.keys.equal(b.keys)
            assert a.values.equal(b.values)


def test_two_passes_resume_from_stripes(film: Path) -> None:
    """H of a model that compresses as it prefills is the memory of each pass; here it is read back in parts."""
    lm, cancel = two_pass(), threading.Event()
    with engine(lm=lm, calibration=None, stripe_bytes=3000) as x2l, engine(lm=lm, calibration=None) as whole:
        with pytest.raises(Exception, match="cancelled"):
            x2l.index(film, cancel=cancel, progress=lambda event: cancel.set() if event.chunk == 1 else None, **SMALL)
        manifest = x2l.index(film, **SMALL)
        assert stripes(manifest, Kind.L) > 1
        texts = [
            one.ask(one.index(film, **SMALL), QUESTION, detail="k=1", generation=WRITE).text for one in (x2l, whole)
        ]
    assert texts[0] == texts[1]


def test_stripes_over_a_server_and_segments_on_disk(lm: Any, film: Path, tmp_path: Path, empty_valkey: str) -> None:
    with engine(lm=lm) as plain, engine(f"disk:{tmp_path}", fine=empty_valkey, lm=lm, stripe_bytes=TINY) as x2l:
        expected = plain.ask(plain.index(film, **SMALL), QUESTION, detail="fine", generation=WRITE)
        manifest = x2l.index(film, **SMALL)
        assert {key.kind[0] for key in x2l.stores.kv.route(Kind.L).keys("local", manifest.video)} == {"l"}
        assert {key.kind[0] for key in x2l.stores.kv.route(Kind.H).keys("local", manifest.video)} == {"h", "x"}
        answer = x2l.ask(manifest, QUESTION, detail="fine", generation=WRITE)
        assert (answer.text, answer.degraded) == (expected.text, False)
        x2l.delete(manifest.video)
        assert x2l.stores.kv.held_bytes() == 0


# --- few fetches ----------------------------------------------------------------------------------------------------


def test_all_of_a_videos_coarse_blocks_and_its_score_index_are_one_fetch_each(spied, film: Path) -> None:
    x2l, kv = spied
    manifest = x2l.index(film, **SMALL)
    assert len(manifest.chunks) > 3
    assert sum(segments(manifest).values()) == 3, "coarse blocks and two score indexes"
    assert all(key.kind == Kind.L or key.kind.endswith("-seg") for key in manifest.named)
    kv.fetched.clear()
    with again(x2l) as cold:
        cold.ask(manifest, QUESTION, detail="k=2", generation=WRITE)
    assert Counter(key.kind[0] for key in kv.fetched) == {"h": 1, "x": 1, "l": 2}
    assert set(kv.fetched.values()) == {1}


def test_packing_does_not_wait_for_more_than_a_stripe(lm: Any, film: Path) -> None:
    with engine(lm=lm, stripe_bytes=12 << 10) as x2l:
        manifest = x2l.index(film, **SMALL)
        for key in manifest.named:
            assert len(x2l.stores.kv.get(key)) <= 12 << 10


def test_segments_go_the_way_of_their_kind(lm: Any, film: Path) -> None:
    kept = {kind: MemoryKV() for kind in Kind}
    kv = RoutedKV(dict(kept), MemoryKV())
    with VideoEngine(lm, replace(Stores.open("memory:"), kv=kv), calibration=calibration(lm)) as x2l:
        manifest = x2l.index(film, **SMALL)
        for kind, store in kept.items():
            keys = set(store.keys("local", manifest.video))
            assert keys == {key for key in manifest.named if key.kind[0] == kind}
            assert keys


def test_a_new_calibration_is_added_to_a_packed_index_by_repair_and_packed(lm: Any, film: Path, tmp_path: Path) -> None:
    with engine(f"disk:{tmp_path}", lm=lm, calibration=None) as early:
        before = early.index(film, **SMALL)
    with engine(f"disk:{tmp_path}", lm=lm) as later, engine(lm=lm) as fresh:
        manifest = later.index(film, repair=True, **SMALL)
        expected = fresh.index(film, **SMALL)
        assert segments(manifest) == segments(expected)
        assert set(segments(manifest)) > set(segments(before))
        assert set(later.stores.kv.keys("local", manifest.video)) == manifest.named
        plans = [x2l.explain(m, QUESTION, detail="k=1") for x2l, m in ((later, manifest), (fresh, expected))]
    assert plans[0].chunks == plans[1].chunks


# --- questions beside a packing -------------------------------------------------------------------------------------


def unpacked(x2l: VideoEngine, film: Path) -> tuple[Manifest, Manifest]:
    """Indexes; returns the manifest as it was before packing, and after."""
    seen: list[Manifest] = []

    def note(event: Any) -> None:
        seen.append(x2l.stores.state.manifest("local", event.video))

    after = x2l.index(film, progress=note, **SMALL)
    assert not segments(seen[-1])
    assert len(seen[-1].chunks) == len(after.chunks)
    return seen[-1], after


def test_a_question_with_the_manifest_from_before_the_packing_is_answered_as_ever(spied, film: Path) -> None:
    x2l, kv = spied
    before, after = unpacked(x2l, film)
    assert not any(key in after.named for key in before.named if key.kind != Kind.L)
    with again(x2l) as cold:
        expected = cold.ask(after, QUESTION, detail="k=2", generation=WRITE)
    with again(x2l) as cold:
        kv.fetched.clear()
        answer = cold.ask(before, QUESTION, detail="k=2", generation=WRITE)
    assert (answer.text, answer.degraded, answer.plan.note) == (expected.text, False, None)
    assert all(
        kv.fetched[key] == 1 for key in after.named if key.kind.endswith("-seg") and key.kind != "x-embedding-seg"
    )


def test_packed_while_a_question_reads_its_coarse_blocks(spied, lm: Any, film: Path) -> None:
    """The question begins before the packing is published, and has only its first coarse block when all others go."""
    x2l, kv = spied
    reading, packed = threading.Event(), threading.Event()
    answers = []

    def before_fetch(key: BlockKey) -> None:
        if key.kind == Kind.H and threading.current_thread().name.startswith("x2l-read") and reading.is_set():
            assert key.chunk == 0 or packed.wait(WAIT_S)

    def ask(manifest: Manifest) -> None:
        with again(x2l) as cold:
            answers.append(cold.ask(manifest, QUESTION, detail="k=2", generation=WRITE))

    def begin_to_ask() -> None:
        (record,) = x2l.videos()
        thread = threading.Thread(target=ask, args=(x2l.manifest(record.video),))
        kv.before_fetch = lambda key: (reading.set(), before_fetch(key))  # type: ignore[assignment, func-returns-value]
        thread.start()
        asking.append(thread)
        assert reading.wait(WAIT_S)

    asking: list[threading.Thread] = []
    at_packing(x2l, kv, begin_to_ask)
    manifest = x2l.index(film, **SMALL)
    packed.set()
    asking[0].join(WAIT_S)
    with engine(lm=lm) as whole:
        expected = whole.ask(whole.index(film, **SMALL), QUESTION, detail="k=2", generation=WRITE)
    assert segments(manifest)
    assert [(a.text, a.degraded) for a in answers] == [(expected.text, False)]


def ask_beside_repairs(lm: Any, film: Path, seed: int, rounds: int) -> None:
    """Two askers with whatever manifest they have, while blobs are lost, made again, packed and moved."""
    dice, kv = random.Random(seed), Spied()
    with VideoEngine(lm, replace(Stores.open("memory:"), kv=kv), calibration=calibration(lm), stripe_bytes=TINY) as x2l:
        manifests = [x2l.index(film, **SMALL)]
        expected = x2l.ask(manifests[0], QUESTION, detail="k=2", generation=WRITE).text
        over, wrong, outcomes = threading.Event(), [], Counter[str]()

        def ask(own: random.Random) -> None:
            while not over.is_set():
                try:
                    with again(x2l) as cold:
                        answer = cold.ask(own.choice(manifests), QUESTION, detail="k=2", generation=WRITE)
                except KVError as error:
                    outcomes[error.code if error.retryable else "for good"] += 1
                except BaseException as error:
                    wrong.append(error)
                    raise
                else:
                    outcomes["flagged" if answer.degraded else "same"] += 1
                    if not answer.degraded and answer.text != expected:
                        wrong.append(answer)

        askers = [threading.Thread(target=ask, args=(random.Random(f"{seed}/{n}"),)) for n in range(2)]
        for asker in askers:
            asker.start()
        try:
            for _ in range(rounds):
                kv.delete(dice.sample(sorted(manifests[-1].named, key=str), dice.randint(1, 3)))
                manifests.append(x2l.index(film, repair=True, **SMALL))
        finally:
            over.set()
            for asker in askers:
                asker.join(WAIT_S)
        assert not wrong
        assert outcomes["same"]
        assert not outcomes["for good"]
        assert set(kv.keys("local", manifests[-1].video)) == manifests[-1].named
        for manifest in manifests:  # the oldest, too: what is made again is what it was
            with again(x2l) as cold:
                answer = cold.ask(manifest, QUESTION, detail="k=2", generation=WRITE)
                assert (answer.text, answer.degraded) == (expected, False)


def test_questions_beside_losses_and_repairs_are_answered_as_ever_or_flagged(lm: Any, film: Path) -> None:
    ask_beside_repairs(lm, film, seed=1, rounds=4)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 22))
def test_questions_beside_many_losses_and_repairs(lm: Any, film: Path, seed: int) -> None:
    ask_beside_repairs(lm, film, seed, rounds=8)


# --- dying anywhere -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone: nothing it would do after this is done."""


class Mortal:
    """The stores of a process that dies at its n-th step, before or after the step is done."""

    def __init__(self, stores: Stores, at: int, after: bool) -> None:
        self.steps: list[str] = []
        self._at, self._after, self._dead = at, after, False
        self._lock = threading.Lock()
        self.stores = replace(stores, kv=_Steps(stores.kv, self, KV), state=_Steps(stores.state, self, STATE))

    def step(self, name: str, do: Callable[[], Any]) -> Any:
        with self._lock:
            if self._dead:
                raise Killed
            dies = len(self.steps) == self._at
            self.steps.append(name)
            if not dies:
                return do()
            self._dead = True
            if self._after:
                do()
            raise Killed


KV = ("put", "delete")
STATE = ("begin", "seal", "revise", "finish")


class _Steps:
    def __init__(self, inner: Any, mortal: Mortal, names: tuple[str, ...]) -> None:
        self._inner, self._mortal, self._names = inner, mortal, names

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self._names:
            return found
        return lambda *args: self._mortal.step(name, lambda: found(*args))


def run_until(x2l: VideoEngine, film: Path, at: int, after: bool, **options: Any) -> list[str]:
    mortal = Mortal(x2l.stores, at, after)
    doomed = VideoEngine(x2l.lm, mortal.stores, calibration=x2l.calibration, **options)
    if at < 0:
        doomed.index(film, **SMALL)
    else:
        with pytest.raises(Killed):
            doomed.index(film, **SMALL)
    return mortal.steps


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mosaic(tmp_path_factory.mktemp("short") / "short.mp4", 7)


def test_dying_between_any_two_steps_leaves_a_readable_index_and_what_the_next_run_sweeps(lm: Any, short: Path) -> None:
    with engine(lm=lm) as whole:
        expected = whole.index(short, **SMALL)
        text = whole.ask(expected, QUESTION, detail="k=1", generation=WRITE).text
    with engine(lm=lm) as x2l:
        steps = run_until(x2l, short, -1, False, stripe_bytes=TINY)
    assert steps.count("revise") == 1
    packing = steps.index("revise")
    chosen = [0, 1, 3, steps.index("seal"), *range(packing - 3, len(steps))]
    for at in chosen:
        for after in (False, True):
            with engine(lm=lm, stripe_bytes=TINY) as x2l:
                assert run_until(x2l, short, at, after, stripe_bytes=TINY)[-1] == steps[at]
                for record in x2l.videos():
                    if record.chunks:
                        half = x2l.manifest(record.video)
                        assert half.named <= set(x2l.stores.kv.keys("local", record.video))
                        answer = x2l.ask(half, QUESTION, detail="fine", generation=WRITE)
                        assert not answer.degraded
                manifest = x2l.index(short, repair=True, **SMALL)
                assert manifest.status is IndexStatus.READY
                assert set(x2l.stores.kv.keys("local", manifest.video)) == manifest.named
                assert segments(manifest)
                assert x2l.ask(manifest, QUESTION, detail="k=1", generation=WRITE).text == text


# --- when packing cannot be -----------------------------------------------------------------------------------------


def test_a_store_too_full_for_segments_keeps_the_index_in_pieces(lm: Any, film: Path) -> None:
    with engine(lm=lm) as whole:
        expected = whole.index(film, **SMALL)
        text = whole.ask(expected, QUESTION, detail="k=1", generation=WRITE).text
        needed = sum(ref.size_bytes for row in expected.chunks for ref in row.blocks.values())
    stores = replace(Stores.open("memory:"), kv=MemoryKV(budget_bytes=needed + 100))
    with VideoEngine(lm, stores, calibration=calibration(lm)) as x2l:
        manifest = x2l.index(film, **SMALL)
        assert manifest.status is IndexStatus.READY
        assert not segments(manifest)
        assert set(stores.kv.keys("local", manifest.video)) == manifest.named
        assert x2l.ask(manifest, QUESTION, detail="k=1", generation=WRITE).text == text


def test_a_run_overtaken_while_it_packs_leaves_no_segment(spied, film: Path) -> None:
    x2l, kv = spied
    recipe = x2l.lm.recipe(**SMALL)

    def overtake() -> None:
        (record,) = x2l.videos()
        x2l.stores.state.begin("local", record.video, recipe, record.info, record.source)

    at_packing(x2l, kv, overtake)
    with pytest.raises(StaleEpoch):
        x2l.index(film, **SMALL)
    half = x2l.manifest(x2l.videos()[0].video)
    assert set(kv.keys("local", half.video)) == half.named
    assert not segments(half)
    assert segments(x2l.index(film, **SMALL))


def test_deleted_while_it_is_packed_nothing_is_left(spied, film: Path) -> None:
    x2l, kv = spied
    at_packing(x2l, kv, lambda: x2l.delete(x2l.videos()[0].video) and None)
    with pytest.raises(UnknownVideo):
        x2l.index(film, **SMALL)
    assert x2l.videos() == []
    assert kv.held_bytes() == 0


class Silent:
    """A state that does what it is told and does not say so, once."""

    def __init__(self, inner: Any, name: str) -> None:
        self._inner, self._name = inner, name

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name != self._name:
            return found
        self._name = ""

        def silent(*args: Any) -> Any:
            found(*args)
            raise StoreUnavailable("the answer was lost")

        return silent


@pytest.mark.parametrize("step", ["seal", "revise"])
def test_a_state_whose_answer_was_lost_has_named_what_is_still_there(lm: Any, film: Path, step: str) -> None:
    """Nobody can tell whether the step was taken; so nothing it may name is deleted."""
    stores = Stores.open("memory:")
    with VideoEngine(lm, replace(stores, state=Silent(stores.state, step)), calibration=calibration(lm)) as x2l:
        if step == "seal":
            with pytest.raises(StoreUnavailable):
                x2l.index(film, **SMALL)
        else:
            assert segments(x2l.index(film, **SMALL))
        named = x2l.manifest(x2l.videos()[0].video).named
        assert named
        assert named <= set(stores.kv.keys("local", x2l.videos()[0].video))
        manifest = x2l.index(film, repair=True, **SMALL)
        assert set(stores.kv.keys("local", manifest.video)) == manifest.named


# --- behind the prefill ---------------------------------------------------------------------------------------------


def test_a_chunk_is_stored_while_the_next_one_is_prefilled(spied, film: Path) -> None:
    x2l, kv = spied
    second = threading.Event()

    def after_put(key: BlockKey) -> None:
        if key.chunk == 0 and not key.kind.endswith("-seg"):
            assert second.wait(WAIT_S), "chunk 1 is not prefilled before chunk 0 is stored"

    kv.after_put = after_put
    manifest = x2l.index(film, watch=lambda done: second.set() if done.index == 1 else None, **SMALL)
    assert manifest.status is IndexStatus.READY


def test_a_full_store_is_told_of_at_the_next_chunk(film: Path, spied) -> None:
    x2l, kv = spied
    watched: list[int] = []

    def after_put(key: BlockKey) -> None:
        if key.chunk == 0:
            raise StoreFull("no room")

    kv.after_put = after_put
    with pytest.raises(StoreFull):
        x2l.index(film, watch=lambda done: watched.append(done.index), **SMALL)
    assert max(watched) <= 2
    assert kv.held_bytes() == 0
