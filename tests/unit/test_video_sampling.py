"""Which frames a sampling picks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from x2l_cluster.errors import InvalidInput, SpanOutsideVideo
from x2l_cluster.types import Sampling
from x2l_cluster.video.sampling import pick, pick_moments, slack_s


def chosen(times_s: list[float], sampling: Sampling, duration_s: float, slack: float = 1e-6) -> list[int]:
    return pick(np.array(times_s), sampling, duration_s=duration_s, slack=slack).frames.tolist()


def test_a_target_picks_the_frame_on_screen() -> None:
    times = [0.0, 0.4, 0.9, 1.0, 1.7, 2.5]
    assert chosen(times, Sampling(fps=1.0), 3.0) == [0, 3, 4]
    assert chosen(times, Sampling(fps=2.0), 3.0) == [0, 1, 3, 4, 5]


def test_no_frame_is_picked_twice_however_fast_the_sampling() -> None:
    assert chosen([0.0, 1.0, 600.0], Sampling(fps=1000.0), 601.0) == [0, 1, 2]


def test_a_standing_picture_is_one_sample() -> None:
    assert chosen([0.0, 1.0, 600.0, 601.0], Sampling(fps=1.0), 602.0) == [0, 1, 2, 3]


def test_count_spreads_evenly_over_the_whole_or_a_span() -> None:
    times = [number / 10 for number in range(100)]
    assert chosen(times, Sampling(count=4), 10.0) == [0, 25, 50, 75]
    assert chosen(times, Sampling(count=2, start_s=5.0, end_s=9.0), 10.0) == [50, 70]
    assert chosen(times, Sampling(count=10**12), 10.0) == list(range(100))


def test_a_span_begins_with_the_frame_on_screen_and_excludes_its_end() -> None:
    times = [0.0, 1.0, 2.0, 3.0]
    assert chosen(times, Sampling(fps=1.0, start_s=1.5, end_s=3.5), 4.0) == [1, 2]
    assert chosen(times, Sampling(fps=1.0, start_s=1.0, end_s=3.0), 4.0) == [1, 2]
    assert pick(np.array(times), Sampling(end_s=99.0), duration_s=4.0, slack=0.0).end_s == 4.0


def test_a_span_after_the_end_is_an_error_that_names_the_end() -> None:
    with pytest.raises(SpanOutsideVideo, match=r"ends at 4\.000 s"):
        chosen([0.0, 1.0, 2.0, 3.0], Sampling(start_s=4.0), 4.0)


@pytest.mark.parametrize(
    "wrong", [{"fps": 0.0}, {"fps": -1.0}, {"fps": float("nan")}, {"fps": 1e9}, {"count": 0}, {"start_s": -1.0},
              {"start_s": 2.0, "end_s": 1.0}]
)  # fmt: skip
def test_a_senseless_sampling_cannot_be_made(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_moments_pick_the_frame_on_screen_and_stop_at_the_last() -> None:
    picks = pick_moments(np.array([0.0, 1.0, 2.0]), [9.0, 0.99, 1.0], duration_s=3.0, slack=1e-6)
    assert picks.frames.tolist() == [0, 1, 2]


def test_slack_is_a_tick_but_never_a_frame() -> None:
    times = np.arange(10) / 25
    assert slack_s(times, 1 / 1000) == pytest.approx(1 / 1000, abs=1e-5)
    assert slack_s(times, 1 / 25) == pytest.approx(0.01)
    assert slack_s(np.zeros(1), 10.0) == 0.25


@given(
    gaps=st.lists(st.integers(1, 400), min_size=0, max_size=40),
    rate=st.integers(1, 64),
    start=st.integers(0, 500),
    length=st.integers(1, 4000),
)
def test_the_rule_holds_frame_by_frame(gaps: list[int], rate: int, start: int, length: int) -> None:
    # Times in 1/64 s and rates that divide 64 are exact in binary, so the rule can be spelt out without rounding.
    rate = 1 << (rate.bit_length() - 1)
    times = np.cumsum([0, *gaps]) / 64
    duration, first, end = float(times[-1]) + 1, start / 64, (start + length) / 64
    if first >= duration:
        return
    last, targets = min(end, duration), []
    while (target := first + len(targets) / rate) < last:
        targets.append(target)
    wanted = sorted({int(np.flatnonzero(times <= target)[-1]) for target in targets})
    assert chosen(times.tolist(), Sampling(fps=float(rate), start_s=first, end_s=end), duration, 0.0) == wanted
