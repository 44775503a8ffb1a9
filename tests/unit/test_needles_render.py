"""The renderer and the files it makes."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from x2l_cluster.needles import Footage, Script, load_footage, make_script, render, write_mp4
from x2l_cluster.needles.atlas import EVAL_FONTS, TRAIN_FONTS, load_atlas
from x2l_cluster.needles.backgrounds import TRAIN_TEXTURES, texture
from x2l_cluster.needles.looks import COLUMN, look
from x2l_cluster.needles.script import LETTERS, SHAPES


def _coded(script: Script) -> list[int]:
    return [s.index for s in script.scenes if s.code is not None]


def test_the_atlas_holds_every_letter_of_every_font_and_every_shape() -> None:
    atlas = load_atlas()
    assert atlas.letters.shape == (len(TRAIN_FONTS + EVAL_FONTS), len(LETTERS), 48, 48)
    assert atlas.shapes.shape == (len(SHAPES), 48, 48)
    inside = (atlas.letters > 0).float().mean((-1, -2))
    assert ((inside > 0.03) & (inside < 0.5)).all()
    assert set(atlas.font_range("train")).isdisjoint(atlas.font_range("eval"))


def test_splits_share_no_font_and_no_texture() -> None:
    for split, fonts, textures in (("train", range(15), range(1024)), ("eval", range(15, 20), range(1024, 2048))):
        for seed in range(10):
            for scene in make_script(seed, groups=96, split=split).scenes:  # type: ignore[arg-type]
                row = look(scene, split)  # type: ignore[arg-type]
                assert int(row[COLUMN["texture"]]) in textures
                if scene.code is not None:
                    assert int(row[COLUMN["font_a"]]) in fonts
                    assert int(row[COLUMN["font_b"]]) in fonts


def test_frames_have_the_asked_size_and_repeat() -> None:
    script = make_script(0, groups=16)
    frames = render(script, [0.0, 1.5, 31.0], size=64)
    assert frames.shape == (3, 64, 64, 3)
    assert frames.dtype == torch.uint8
    assert torch.equal(frames, render(script, [0.0, 1.5, 31.0], size=64))
    assert torch.equal(frames[1:2], render(script, [1.5], size=64))


def test_a_code_is_drawn_in_its_moment_only() -> None:
    script = make_script(4, groups=48)
    scene = script.scenes[_coded(script)[0]]
    assert scene.code is not None
    times = [scene.code.start_s - 0.01, scene.code.start_s + 0.01, scene.code.end_s - 0.01, scene.code.end_s + 0.01]
    before, on, off, after = render(script, times, size=128).float()
    appeared, left = ((a - b).abs().amax(-1) > 60 for a, b in ((on, before), (off, after)))
    assert appeared.sum() > 100
    assert left.sum() > 100
    rows = appeared.nonzero()[:, 0]
    assert rows.max() - rows.min() < 64  # within its half of the frame


def test_a_marker_is_drawn_in_its_colour() -> None:
    script = next(s for seed in range(50) if (s := make_script(seed, groups=8)).scenes[0].marker is not None
                  and s.scenes[0].marker.color == "red")  # fmt: skip
    frame = render(script, [0.2], size=128)[0].float() / 255
    red = (frame[..., 0] > 0.75) & (frame[..., 1] < 0.25) & (frame[..., 2] < 0.25)
    assert red.sum() > 80


def test_footage_is_seen_behind_the_scenes() -> None:
    script = make_script(0, groups=8)
    clip = Footage(frames=torch.full((4, 3, 128, 128), 200, dtype=torch.uint8), fps=2.0)
    frame = render(script, [1.0], size=64, footage=clip, only_footage=True)[0]
    values, counts = np.unique(frame[..., 0].numpy(), return_counts=True)
    assert counts.max() > 64 * 64 * 0.5  # one flat colour fills most of the frame
    assert len(values) > 3


def test_textures_repeat_and_differ() -> None:
    again = texture.__wrapped__(7)
    assert torch.equal(texture(7), again)
    assert not torch.equal(texture(7), texture(8))
    assert texture(TRAIN_TEXTURES + 5).shape == (3, 128, 128)


def test_an_mp4_is_real_h264_at_a_constant_rate_and_shows_the_script(tmp_path: Path) -> None:
    script = make_script(1, duration_s=10.0)
    path = write_mp4(script, tmp_path / "v.mp4", size=128, fps=4)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 4
        assert stream.sample_aspect_ratio in {None, 1}
        frames = [(float(f.time or 0.0), f.to_ndarray(format="rgb24")) for f in container.decode(stream)]
    assert [t for t, _ in frames] == [k / 4 for k in range(40)]
    drawn = render(script, [5.0], size=128)[0].numpy().astype(float)
    error = np.abs(frames[20][1].astype(float) - drawn).mean()
    assert error < 16
    assert error < np.abs(frames[20][1].astype(float) - 128).mean()


def test_an_mp4_can_be_read_back_as_footage(tmp_path: Path) -> None:
    path = write_mp4(make_script(1, duration_s=6.0), tmp_path / "v.mp4", size=64)
    clip = load_footage(path, fps=2.0)
    assert clip.frames.shape == (12, 3, 128, 128)
    over = write_mp4(make_script(2, duration_s=4.0), tmp_path / "w.mp4", size=64, footage=path)
    assert over.stat().st_size > 1000


def test_odd_sides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even"):
        write_mp4(make_script(1, duration_s=6.0), tmp_path / "v.mp4", size=65)
