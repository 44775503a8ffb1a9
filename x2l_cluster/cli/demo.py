"""``x2l demo``: the main job on two videos, from pixels to answers with evidence."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from x2l_cluster.cli import opened, progress
from x2l_cluster.errors import InvalidInput, UnknownVideo
from x2l_cluster.types import Answer

if TYPE_CHECKING:
    from x2l_cluster.engine import VideoEngine
    from x2l_cluster.needles import Question, Script

DURATION_S = 192.0
"""Twelve chunks of the bundled model."""
SEEDS = {"textures": 0, "footage": 1}
"""Video id → seed of its script; from the evaluation split, which no training saw."""
PER_KIND = {"retrieval": 2, "time": 2, "order": 1, "existence": 1, "count": 1}
ENOUGH = 0.8
"""A demo that gets less right has failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A question with its answer and what would have been right."""

    video: str
    kind: str
    question: str
    expected: str
    right: bool
    answer: Answer


class Demo:
    """One run: iterate over :meth:`run`, then look at the sums.

    Args:
        folder: gets the videos and an ``index``; a run before this one in the same folder does no harm.
        console: where progress goes.
    """

    def __init__(self, folder: Path, model: str | None, console: Console) -> None:
        self.folder, self._model, self._console = folder, model, console
        self.told: list[Told] = []
        self.seconds = 0.0

    @property
    def right(self) -> int:
        return sum(told.right for told in self.told)

    @property
    def good(self) -> bool:
        return self.right >= ENOUGH * len(self.told) > 0

    @property
    def best(self) -> Told:
        """The one worth explaining: a code read from one short moment."""
        return max(self.told, key=lambda told: (told.kind == "retrieval", told.right))

    @property
    def next(self) -> Told:
        """The one to try by hand: of the video over real footage."""
        return next(told for told in self.told if told.video == "footage")

    def path(self, video: str) -> Path:
        return self.folder / f"{video}.mp4"

    def run(self) -> Iterator[Told]:
        """Renders, indexes, asks; yields every question as soon as it is answered.

        Fine blocks go into a Valkey that lives as long as this generator, the rest into ``folder/index``.
        """
        from x2l_cluster.kv.embedded import EmbeddedValkey

        begun = time.monotonic()
        scripts = self._scripts()
        self.folder.mkdir(parents=True, exist_ok=True)
        with (
            EmbeddedValkey() as server,
            opened.engine(self._model, f"disk:{self.folder / 'index'}", server.url) as engine,
        ):
            for video, script in scripts.items():
                self._render(video, script)
                self._index(engine, video)
            for video, script in scripts.items():
                for told in self._ask(engine, video, script):
                    self.told.append(told)
                    self.seconds = time.monotonic() - begun
                    yield told

    def _scripts(self) -> dict[str, Script]:
        from x2l_cluster.needles import make_script

        return {video: make_script(seed, duration_s=DURATION_S, split="eval") for video, seed in SEEDS.items()}

    def _render(self, video: str, script: Script) -> None:
        from x2l_cluster.needles.files import write_mp4

        with self._console.status(f"rendering {video}"):
            part = self.path(video).with_suffix(".part")
            write_mp4(script, part, footage=_clip() if video == "footage" else None)
            part.replace(self.path(video))

    def _index(self, engine: VideoEngine, video: str) -> None:
        with suppress(UnknownVideo):  # an earlier run's, whose Valkey is gone
            engine.delete(video)
        with progress.chunks(self._console, video) as report:
            engine.index(self.path(video), video=video, progress=report)

    def _ask(self, engine: VideoEngine, video: str, script: Script) -> Iterator[Told]:
        from x2l_cluster.engine import Generation
        from x2l_cluster.needles import grade, make_questions

        question: Question
        for question in make_questions(script, per_kind=PER_KIND):  # type: ignore[arg-type]
            answer = engine.ask(video, question.text, generation=Generation(max_tokens=16))
            yield Told(
                video=video,
                kind=question.kind,
                question=question.text,
                expected=question.answer,
                right=grade(question, answer.text),
                answer=answer,
            )


def _clip() -> Path:
    """Real footage: a clip that comes with the package iscc-samples (CC BY 4.0). Raises InvalidInput without it."""
    try:
        import iscc_samples
    except ImportError:
        raise InvalidInput("the demo needs a clip of real footage: pip install 'x2l_cluster[demo]'") from None
    return next(Path(clip) for clip in iscc_samples.videos() if Path(clip).name == "demo.mp4")
