"""Whatever a store does to blobs, an answer is the fault-free one, or flagged, or an error; never just another."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engines import SMALL, calibration, engine, mosaic
from tests.tiny import qwen3_vl
from x2l_cluster.engine import Generation, VideoEngine
from x2l_cluster.errors import KVError
from x2l_cluster.kv.faulty import Fault, FaultPlan, FaultyKV
from x2l_cluster.kv.memory import MemoryKV
from x2l_cluster.kv.store import KVStore
from x2l_cluster.kv.tiered import TieredKV, ladder
from x2l_cluster.types import Answer, Level, Manifest

WRITE = Generation(max_tokens=6, ignore_stop_ids=True)
REASONS = {"missing", "corrupt", "stale", "late", "unavailable"}
ASKED = [
    ("What code is shown with the red star?", {"detail": "k=2"}),
    ("When does the blue ring appear?", {"detail": "fine"}),
    ("How many?", {"detail": "auto", "scorer": "embedding"}),
    ("What is it?", {"detail": "coarse"}),
    ("What code is shown with the red star?", {"detail": "k=2", "on_missing": "fail"}),
]


class Golden:
    """An indexed video, and what is answered when nothing is wrong."""

    def __init__(self, x2l: VideoEngine, film: Path) -> None:
        self._x2l = x2l
        self.manifest: Manifest = x2l.index(film, **SMALL)
        self.answers = [x2l.ask(self.manifest, question, generation=WRITE, **more) for question, more in ASKED]

    def under(self, plan: FaultPlan, *, tiers: bool = False) -> tuple[FaultyKV, VideoEngine]:
        """The same video in a store of its own that fails by plan, below host memory if wanted; nothing is hot."""
        m, kept = self.manifest, self._x2l.stores.kv
        copy: KVStore = MemoryKV()
        for key in kept.keys(m.tenant, m.video):
            copy.put(key, kept.get(key))
        store = FaultyKV(copy, plan, sleep=lambda _: None)
        lm = self._x2l.lm
        kv: KVStore = TieredKV(ladder([MemoryKV(), store])) if tiers else store
        return store, VideoEngine(lm, replace(self._x2l.stores, kv=kv), calibration=calibration(lm))


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Golden]:
    film = mosaic(tmp_path_factory.mktemp("film") / "film.mp4", 15)
    with engine(lm=qwen3_vl(0), stripe_bytes=8 << 10) as x2l:  # fine blocks in stripes, score indexes in segments
        yield Golden(x2l, film)


def check(answer: Answer, expected: Answer) -> str:
    """``same`` or ``flagged``; anything else fails."""
    flagged = [item for item in answer.evidence if item.degraded]
    assert all(item.degraded in REASONS and item.level is Level.H for item in flagged)
    assert answer.plan.degraded in {None, *REASONS}
    assert answer.degraded == bool(flagged or answer.plan.degraded)
    if answer.degraded:
        return "flagged"
    assert answer.text == expected.text
    assert answer.plan == expected.plan
    return "same"


def outcomes(golden: Golden, plan: FaultPlan, *, tiers: bool = False) -> Counter[str]:
    """Asks everything twice, in an order of the seed's, and judges what comes."""
    _, x2l = golden.under(plan, tiers=tiers)
    seen: Counter[str] = Counter()
    order = random.Random(plan.seed).sample(range(len(ASKED)), len(ASKED)) * 2
    for index in order:
        question, more = ASKED[index]
        try:
            answer = x2l.ask(golden.manifest, question, generation=WRITE, **more)
        except KVError as error:
            seen[error.code if error.retryable else "for good"] += 1
        else:
            seen[check(answer, golden.answers[index])] += 1
            assert more.get("on_missing") != "fail" or not any(item.degraded for item in answer.evidence)
    if tiers:
        x2l.stores.kv.close()
    assert "for good" not in seen
    return seen


def plan_of(seed: int) -> FaultPlan:
    """Some faults at some rates on some kinds."""
    dice = random.Random(seed)
    chosen = dice.sample(list(Fault), dice.randint(1, len(Fault)))
    rates = {str(fault): dice.uniform(0.2, 1.0) / len(chosen) for fault in chosen}
    return FaultPlan(seed=seed, kinds=dice.choice(["l", "l", "x", "lx", "lhx"]), delay_s=dice.choice([1, 9]), **rates)


@pytest.mark.parametrize("kinds", ["l", "h", "x"])
@pytest.mark.parametrize("fault", list(Fault))
def test_a_fault_alone_never_makes_a_silent_difference(golden: Golden, fault: Fault, kinds: str) -> None:
    seen = outcomes(golden, FaultPlan(seed=1, kinds=kinds, delay_s=9, **{str(fault): 0.5}))
    if kinds == "h":
        assert set(seen) & {"kv_missing", "store_unavailable", "store_late"}
    else:
        assert seen["flagged"]
        assert seen["same"]


@pytest.mark.parametrize("tiers", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_faults_together_never_make_a_silent_difference(golden: Golden, seed: int, tiers: bool) -> None:
    outcomes(golden, plan_of(seed), tiers=tiers)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(6, 306))
def test_many_mixtures_of_faults_never_make_a_silent_difference(golden: Golden, seed: int) -> None:
    outcomes(golden, plan_of(seed), tiers=bool(seed % 2))


def test_what_is_only_late_for_a_while_is_waited_for(golden: Golden) -> None:
    assert set(outcomes(golden, FaultPlan(delay=1.0, delay_s=1))) == {"same"}


def test_a_flagged_answer_is_that_of_the_coarse_block_it_names(golden: Golden) -> None:
    """What a flag says is true: with every fine block gone the text is the coarse one."""
    _, x2l = golden.under(FaultPlan(drop=1.0, kinds="l"))
    question, _ = ASKED[3]
    answer = x2l.ask(golden.manifest, question, detail="fine", generation=WRITE)
    assert {item.degraded for item in answer.evidence} == {"missing"}
    assert answer.text == golden.answers[3].text
