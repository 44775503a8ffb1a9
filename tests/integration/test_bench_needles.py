"""The bench runs the whole path on the reference model and prints what it promises."""

from __future__ import annotations

import json

import pytest

from x2l_cluster.bench.exam import Job, run_video
from x2l_cluster.bench.needles import POLICIES, SCORERS, run_needles
from x2l_cluster.errors import InvalidInput
from x2l_cluster.needles import KINDS


@pytest.fixture(scope="module")
def result():
    return run_needles("reference", chunks=3, questions=1, deep=1, seed=50)


def test_the_object_has_every_policy_kind_and_scorer(result):
    assert json.loads(json.dumps(result))["suite"] == "needles"
    assert (result["chunks"], set(result["n"])) == (3, set(KINDS))
    assert set(result["policies"]) == set(POLICIES)
    assert all(set(row) == {*KINDS, "kv_share", "moved_share"} for row in result["policies"].values())
    assert set(result["recall"]) == set(SCORERS)
    assert all(set(row) == {"1", "2", "3", "given_coarse_wrong"} for row in result["recall"].values())


def test_shares_are_in_the_order_that_the_levels_promise(result):
    share = {policy: row["kv_share"] for policy, row in result["policies"].items()}
    moved = {policy: row["moved_share"] for policy, row in result["policies"].items()}
    assert share["all_coarse"] < share["x2l_auto"] < share["all_fine"] < share["full"] == share["stock"] == 1
    assert share["uniform_budget"] >= share["x2l_auto"] - 1e-3
    assert share["random_k"] == pytest.approx(share["x2l_auto"], abs=0.02)
    assert moved["all_coarse"] == 0 < moved["x2l_auto"] < moved["all_fine"] < moved["full"] == 1


def test_the_model_reads_codes_in_full_detail_and_not_in_the_gist(result):
    assert result["policies"]["stock"]["retrieval"] > 0.5
    assert result["policies"]["all_coarse"]["retrieval"] < 0.2


def test_videos_that_cannot_hold_the_questions_are_said_so():
    with pytest.raises(InvalidInput, match="questions"):
        run_needles("reference", chunks=1, questions=10**6, deep=1)


def test_with_every_fine_block_dropped_on_purpose_the_service_answers_from_the_gist():
    job = Job(
        model="reference",
        seed=50,
        chunks=3,
        policies=("all_fine", "all_coarse"),
        scorers=(),
        device="cpu",
        dtype=None,
        threads=1,
        store="faulty:drop=1,kinds=l@memory:",
    )
    right = run_video(job).right
    assert right["all_fine"] == right["all_coarse"]
    with pytest.raises(InvalidInput, match="melt"):
        run_needles("reference", chunks=3, questions=1, deep=1, faults="melt=1")
