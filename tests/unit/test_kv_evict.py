"""What goes when a tier is full."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x2l_cluster.errors import InvalidInput
from x2l_cluster.kv.evict import Entry, Limits, Victim, choose
from x2l_cluster.types import BlockKey

LIMITS = Limits(budget_bytes=1000)


def entry(
    chunk: int,
    *,
    heat: float = 0,
    kind: str = "l",
    size: int = 10,
    tenant: str = "ada",
    video: str = "v1",
    stripe: int = 0,
) -> Entry:
    key = BlockKey(tenant=tenant, video=video, recipe="r1", epoch=1, kind=kind, chunk=chunk, stripe=stripe)
    return Entry(key=key, size_bytes=size, heat=heat)


def chunks(victims: object) -> list[int]:
    return [victim.key.chunk for victim in victims]  # type: ignore[attr-defined]


def test_the_coldest_fine_blocks_go_and_no_more_than_needed() -> None:
    entries = [entry(n, heat=heat) for n, heat in enumerate([5, 1, 9, 3])]
    assert chunks(choose(entries, LIMITS, 20)) == [1, 3]
    assert chunks(choose(entries, LIMITS, 21)) == [1, 3, 0]
    assert chunks(choose(entries, LIMITS, 0)) == []
    assert chunks(choose(entries, LIMITS, 1000)) == [1, 3, 0, 2]


def test_coarse_blocks_and_score_indexes_stay_unless_the_operator_says_otherwise() -> None:
    entries = [entry(0, kind="h"), entry(1, kind="x-1f"), entry(2, heat=9), entry(3, kind="h-seg")]
    assert chunks(choose(entries, LIMITS, 1000)) == [2]
    assert chunks(choose(entries, Limits(budget_bytes=1000, coarse_too=True), 1000)) == [2, 1, 0, 3]


def test_blobs_without_a_manifest_go_first_whatever_they_are() -> None:
    entries = [entry(0), entry(1, kind="h", video="gone", heat=9)]
    assert chunks(choose(entries, LIMITS, 10, orphaned=lambda tenant, video: video == "gone")) == [1]


def test_a_block_goes_with_all_its_stripes_and_is_as_warm_as_the_warmest() -> None:
    entries = [entry(0, stripe=0, heat=1), entry(0, stripe=1, heat=8), entry(1, heat=5)]
    assert chunks(choose(entries, LIMITS, 5)) == [1]
    (last,) = list(choose(entries, LIMITS, 1000))[1:]
    assert [e.key.stripe for e in last.entries] == [0, 1]


def test_who_is_above_quota_goes_first_and_only_down_to_it() -> None:
    limits = Limits(budget_bytes=1000, quota_bytes=20, quotas={"bob": 0})
    entries = [entry(n, tenant="ada", heat=n) for n in range(4)] + [
        entry(10 + n, tenant="bob", heat=90) for n in (0, 1)
    ]
    assert chunks(choose(entries, limits, 1000)) == [0, 1, 10, 11]
    assert [v.over_quota for v in choose(entries, limits, 1000)] == [True, True, False, False]


def test_within_quotas_the_one_who_needs_room_makes_it_of_its_own() -> None:
    limits = Limits(budget_bytes=1000, quota_bytes=1000)
    entries = [entry(0, tenant="ada"), entry(1, tenant="bob", heat=5)]
    assert chunks(choose(entries, limits, 1000)) == []
    assert chunks(choose(entries, limits, 1000, tenant="bob")) == [1]


ENTRIES = st.lists(
    st.builds(
        entry,
        st.integers(0, 3),
        heat=st.integers(0, 5),
        kind=st.sampled_from(["l", "l", "h", "x-1f", "x-embedding", "h-seg"]),
        size=st.integers(1, 50),
        tenant=st.sampled_from(["ada", "bob", "eve"]),
        video=st.sampled_from(["v1", "v2"]),
        stripe=st.integers(0, 2),
    ),
    max_size=40,
    unique_by=lambda e: e.key,
)


@given(
    entries=ENTRIES,
    quota=st.sampled_from([0, 0, 30, 100]),
    free=st.integers(0, 600),
    tenant=st.sampled_from([None, "ada"]),
    coarse_too=st.booleans(),
)
def test_the_promises_of_eviction(
    entries: list[Entry], quota: int, free: int, tenant: str | None, coarse_too: bool
) -> None:
    limits = Limits(budget_bytes=1000, quota_bytes=quota, quotas={"eve": 0}, coarse_too=coarse_too)
    victims: list[Victim] = list(choose(entries, limits, free, tenant=tenant))
    gone = [e for victim in victims for e in victim.entries]
    assert len(set(gone)) == len(gone)
    assert set(gone) <= set(entries)
    freed = sum(victim.size_bytes for victim in victims)
    assert not victims or freed - victims[-1].size_bytes < free, "no block more than needed"
    assert list(choose(entries, limits, freed, tenant=tenant)) == victims, "the same every time"
    for victim in victims:  # whole blocks
        assert {
            e for e in entries if e.key.chunk == victim.key.chunk and e.key.parts[:-1] == victim.key.parts[:-1]
        } == {*victim.entries}
    before, after = Counter[str](), Counter[str]()
    for e in entries:
        before[e.key.tenant] += e.size_bytes
        after[e.key.tenant] += e.size_bytes * (e not in gone)
    for other in {"ada", "bob", "eve"} - {tenant}:
        assert after[other] >= min(before[other], limits.quota(other)), "nobody is pushed below its quota by another"
    kept = set(entries) - set(gone)
    if not coarse_too:
        assert {e.key.kind for e in gone} <= {"l"}
    if quota == 0 and freed < free:
        assert not kept or (not coarse_too and {e.key.kind for e in kept}.isdisjoint({"l"}))
    if quota == 0:  # nothing is protected: strictly L first, and of those the coldest
        if any(e.key.kind != "l" for e in gone):
            assert all(e.key.kind != "l" for e in kept)
        warm = {v.key: v.heat for v in choose(entries, Limits(budget_bytes=1000), 10**9)}
        gone_heat = [v.heat for v in victims if v.key.kind == "l"]
        kept_heat = [heat for key, heat in warm.items() if key not in {v.key for v in victims}]
        assert not gone_heat or not kept_heat or max(gone_heat) <= min(kept_heat)


@pytest.mark.parametrize(
    "wrong",
    [
        {"budget_bytes": 0},
        {"high": 1.1},
        {"low": 0.95},
        {"low": 0},
        {"quota_bytes": -1},
        {"quotas": {"ada": -5}},
    ],
)
def test_limits_check_themselves(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        Limits(**{"budget_bytes": 1000, **wrong})  # type: ignore[arg-type]
