"""Scripts: what happens in a synthetic video."""

from __future__ import annotations

import itertools

import pytest

from x2l_cluster.needles import make_script
from x2l_cluster.needles.script import LETTERS

SEEDS = range(40)


@pytest.mark.parametrize("groups", [16, 96, 288])
def test_scenes_tile_the_video_and_neighbours_differ(groups: int) -> None:
    for seed in SEEDS:
        script = make_script(seed, groups=groups)
        edges = [0.0, *(s.end_s for s in script.scenes)]
        assert [s.start_s for s in script.scenes] == edges[:-1]
        assert edges[-1] == script.duration_s == groups * 2.0
        markers = [s.marker for s in script.scenes]
        assert all(a is None or a != b for a, b in itertools.pairwise(markers))
        assert max(script.counts().values(), default=0) <= 4


def test_a_code_lies_inside_its_scene_and_one_chunk_and_shows_a_whole_group() -> None:
    codes = 0
    for seed in SEEDS:
        for scene in make_script(seed, groups=96, split="eval").scenes:
            if scene.code is None:
                continue
            codes += 1
            low, high = scene.code.start_s, scene.code.end_s
            assert scene.start_s < low < high < scene.end_s
            assert int(low // 16) == int(high // 16)
            assert any(low <= 2 * g and 2 * g + 1 < high for g in range(96))
            assert len(scene.code.text) == 4
            assert set(scene.code.text) <= set(LETTERS)
    assert codes > 100


def test_codes_of_one_video_are_unique() -> None:
    for seed in SEEDS:
        codes = [s.code.text for s in make_script(seed, groups=288).scenes if s.code]
        assert len(codes) == len(set(codes))


def test_the_same_seed_gives_the_same_script_and_splits_differ() -> None:
    assert make_script(3, groups=96) == make_script(3, duration_s=192.0)
    assert make_script(3, groups=96).scenes[0].seed != make_script(3, groups=96, split="eval").scenes[0].seed


def test_the_scene_at_a_time_is_clamped_to_the_video() -> None:
    script = make_script(0, groups=96)
    assert script.scene_at(0.0) is script.scenes[0]
    assert script.scene_at(script.scenes[1].start_s) is script.scenes[1]
    assert script.scene_at(999.0) is script.scenes[-1]


@pytest.mark.parametrize("arguments", [{}, {"groups": 4, "duration_s": 8.0}, {"duration_s": 0.0}])
def test_a_script_without_a_length_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"make_script wants|longer than nothing"):
        make_script(0, **arguments)  # type: ignore[arg-type]
