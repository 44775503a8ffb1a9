"""A calibration is a checked value with a digest, and survives JSON."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x2l_cluster.errors import CalibrationMissing, InvalidInput
from x2l_cluster.select import Aggregation, Calibration, Encoding, TokenSet

GOOD = Calibration(
    weights="abc",
    heads=((3, 5), (4, 0)),
    rotation=False,
    tokens=TokenSet.LAST,
    aggregation=Aggregation.MASS,
    encoding=Encoding.ALONE,
    margins=((4, 0.5), (16, 1.5), (64, 1.0)),
    cap=0.3,
    conditions=(("positions", "original"), ("fine", "1x2")),
    recall=(("1", 0.97), ("2", 1.0)),
    probes=40,
    created_with="0.1",
)


def test_json_round_trip() -> None:
    assert Calibration.from_json(GOOD.to_json()) == GOOD


def test_files_round_trip_and_a_missing_one_says_what_to_do(tmp_path: Path) -> None:
    place = tmp_path / "model" / "calibration.json"
    with pytest.raises(CalibrationMissing, match="x2l calibrate"):
        Calibration.load(place)
    GOOD.save(place)
    assert Calibration.load(place) == GOOD
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_digest_covers_what_matters_and_nothing_else() -> None:
    assert Calibration.from_json(GOOD.to_json()).digest == GOOD.digest
    assert replace(GOOD, probes=3, recall=(), created_with="x", conditions=()).digest == GOOD.digest
    others: list[dict[str, Any]] = [
        {"heads": ((3, 5),)},
        {"rotation": True},
        {"tokens": TokenSet.ALL},
        {"aggregation": Aggregation.MAX},
        {"encoding": Encoding.OVER_COARSE},
        {"margins": ((4, 0.5),)},
        {"cap": 0.2},
        {"weights": "other"},
    ]
    assert len({GOOD.digest, *(replace(GOOD, **other).digest for other in others)}) == len(others) + 1


def test_margins_are_linear_in_log_chunks_and_level_outside() -> None:
    assert [GOOD.margin(n) for n in (1, 4, 8, 16, 32, 64, 1000)] == pytest.approx([0.5, 0.5, 1.0, 1.5, 1.25, 1.0, 1.0])


@given(n=st.integers(1, 10_000))
def test_the_cap_is_a_share_rounded_up(n: int) -> None:
    most = GOOD.most(n)
    assert most >= 1
    assert most - 1 < 0.3 * n <= most + 1e-6


def test_cap_of_a_quarter() -> None:
    assert [replace(GOOD, cap=0.25).most(n) for n in (0, 1, 4, 5, 12, 36)] == [1, 1, 1, 2, 3, 9]


@pytest.mark.parametrize(
    "change",
    [
        {"heads": ()},
        {"heads": ((1, 2), (1, 2))},
        {"heads": ((-1, 2),)},
        {"cap": 0.0},
        {"cap": 1.5},
        {"margins": ()},
        {"margins": ((8, 1.0), (4, 1.0))},
        {"margins": ((8, float("nan")),)},
        {"margins": ((0, 1.0),)},
        {"encoding": Encoding.NONE},
    ],
)
def test_nonsense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        replace(GOOD, **change)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "nonsense", '{"format": 99}', GOOD.to_json().replace('"last"', '"first"'), "null", b"\xff\xfe"],
)
def test_what_is_no_calibration_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidInput, match="calibration"):
        Calibration.from_json(text)
