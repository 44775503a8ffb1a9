"""Times, sizes and scores as people read them."""

from __future__ import annotations

import pytest

from x2l_cluster.cli.text import clock, plain, share, size, stretch, strip
from x2l_cluster.types import Detail, Level, PlannedChunk, ReloadPlan, Span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "00:00"), (62.5, "01:02.5"), (59.96, "01:00"), (59.94, "00:59.9"), (3600, "1:00:00"), (3723.4, "1:02:03.4")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (1_500_000, "1.5 MB"), (2.5e12, "2500.0 GB")],
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(("part", "text"), [(0, "0%"), (0.013, "1.3%"), (0.16, "16%"), (1, "100%")])
def test_share(part: float, text: str) -> None:
    assert share(part) == text


def test_text_of_others_cannot_touch_the_terminal() -> None:
    assert (
        plain("red \x1b[31m\x07\r here\n and é 漢")
        == "red \N{REPLACEMENT CHARACTER}[31m" + ("\N{REPLACEMENT CHARACTER}" * 2) + " here\n and é 漢"
    )


def test_stretch() -> None:
    assert stretch(Span(start_s=32, end_s=48)) == "00:32–00:48"


def _plan(scores: list[float], fine: set[int] = frozenset()) -> ReloadPlan:  # type: ignore[assignment]
    return ReloadPlan(
        chunks=tuple(
            PlannedChunk(
                chunk=i,
                span=Span(start_s=16.0 * i, end_s=16.0 * i + 16),
                level=Level.L if i in fine else Level.H,
                score=score,
                reason="score",
                size_bytes=1,
            )
            for i, score in enumerate(scores)
        ),
        scorer="random",
        detail=Detail(),
    )


def test_the_strip_shows_scores_from_lowest_to_highest_and_marks_the_fine() -> None:
    assert list(strip(_plan([-1.0, 0.0, 1.0, -1.0], {2}))) == ["00:00 ▁▅█▁", "      ··▲·"]


def test_equal_scores_are_equal_bars() -> None:
    assert list(strip(_plan([2.0, 2.0]))) == ["00:00 ▁▁", "      ··"]
    assert list(strip(_plan([]))) == []


def test_a_long_strip_is_folded_into_rows_that_start_with_their_time() -> None:
    rows = list(strip(_plan([float(i) for i in range(300)]), width=40))
    assert all(len(row) <= 40 for row in rows)
    assert rows[0].startswith("00:00   ") and rows[2].startswith("08:32   ") and rows[-2].startswith("1:16:48 ")
    assert sum(len(row) - 8 for row in rows[::2]) == 300
