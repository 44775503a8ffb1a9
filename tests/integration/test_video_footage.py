"""Real footage in the containers people have, and the same files with random damage."""

from __future__ import annotations

import random
from pathlib import Path

import iscc_samples
import numpy as np
import pytest

from tests.videos import cfr, copied
from x2l_cluster.errors import DecoderCrashed, DecodeTimeout, X2LError
from x2l_cluster.types import Sampling
from x2l_cluster.video import open_video

CLIPS = Path(iscc_samples.__file__).parent / "files" / "video"


@pytest.mark.parametrize(
    "kind",
    [
        "3gp",
        "asf",
        "avi",
        "f4v",
        "flv",
        "gif",
        "m1v",
        "m4v",
        "mkv",
        "mov",
        "mp4",
        "mpg",
        "rm",
        "swf",
        "vob",
        "webm",
        "wmv",
    ],
)
def test_a_clip_of_sixty_seconds_is_read_in_any_container(kind: str) -> None:
    seconds = 5 if kind == "gif" else 60
    with open_video(CLIPS / f"demo.{kind}", Sampling(fps=0.5)) as stream:
        frames = np.concatenate([batch.frames for batch in stream])
    assert stream.info.partial is None
    assert stream.info.duration_s == pytest.approx(seconds, abs=0.2)
    assert len(frames) == len(stream.times_s) == (3 if kind == "gif" else 31)
    np.testing.assert_allclose(stream.times_s, np.arange(len(frames)) * 2, atol=0.09)
    assert len({frame.tobytes() for frame in frames}) == len(frames)
    assert frames.std() > 20


def damaged(data: bytes, seed: int) -> bytes:
    chance = random.Random(seed)
    noisy = bytearray(data)
    kind = chance.choice(["flip", "head", "cut", "hole", "again"])
    place = chance.randrange(len(noisy))
    if kind == "cut":
        return bytes(noisy[:place])
    if kind == "hole":
        del noisy[place : place + chance.randrange(len(noisy) // 8)]
    elif kind == "again":
        noisy[place:place] = noisy[max(0, place - len(noisy) // 10) : place]
    else:
        for _ in range(chance.choice([4, 60, 1500])):
            noisy[chance.randrange(4000 if kind == "head" else len(noisy))] = chance.randrange(256)
    return bytes(noisy)


def survive(folder: Path, seeds: range) -> None:
    sources = [CLIPS / f"demo.{kind}" for kind in ("webm", "avi", "mpg", "flv", "gif", "ogv")]
    cfr(folder / "a.mp4", 150)
    sources += [folder / "a.mp4", copied(folder / "a.mp4", folder / "a.mkv"), cfr(folder / "a.ts", 150)]
    for seed in seeds:
        source = sources[seed % len(sources)]
        path = folder / f"damaged{source.suffix}"
        path.write_bytes(damaged(source.read_bytes(), seed))
        try:
            with open_video(path, Sampling(fps=2.0), deadline_s=30.0) as stream:
                read = sum(len(batch.frames) for batch in stream)
        except (DecodeTimeout, DecoderCrashed) as error:
            pytest.fail(f"seed {seed} of {source.name}: {error}")
        except X2LError:
            continue
        assert read == len(stream.times_s) or stream.info.partial, f"seed {seed} of {source.name}: lost frames unsaid"
        assert (np.diff(stream.times_s) > 0).all()


def test_random_damage_gives_frames_or_a_typed_error(tmp_path: Path) -> None:
    survive(tmp_path, range(18))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_random_damage_over_many_seeds(tmp_path: Path) -> None:
    survive(tmp_path, range(1000, 3000))
