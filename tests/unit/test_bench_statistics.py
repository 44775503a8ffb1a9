"""Paired differences and their bounds."""

from __future__ import annotations

import random

from x2l_cluster.bench.statistics import paired


def test_the_difference_is_that_of_the_accuracies():
    first = {1: [True, True, False], 2: [True]}
    second = {1: [True, False, False], 2: [True]}
    result = paired(first, second)
    assert (result["difference"], result["n"]) == (0.25, 4)
    assert result["low"] <= 0.25 <= result["high"]


def test_equal_answers_have_no_difference_and_no_width():
    same = {video: [True, False] for video in range(10)}
    assert paired(same, same) == {"difference": 0.0, "low": 0.0, "high": 0.0, "n": 20}


def test_questions_that_stand_and_fall_together_widen_the_bounds():
    draw = random.Random(0)
    lone = {video: [draw.random() < 0.5] for video in range(400)}
    clustered = {video: [draw.random() < 0.5] * 40 for video in range(10)}

    def width(first: dict[int, list[bool]]) -> float:
        result = paired(first, {video: [True] * len(flags) for video, flags in first.items()})
        return result["high"] - result["low"]

    assert width(clustered) > 2 * width(lone)


def test_nothing_asked_is_no_figure():
    result = paired({}, {})
    assert result["n"] == 0
    assert result["difference"] != result["difference"]
