"""``x2l demo``: the main job on two videos, through a service of its own: from pixels to answers with evidence."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from x2l_cluster.cli import progress, remote
from x2l_cluster.cli.started import Started
from x2l_cluster.client import X2L
from x2l_cluster.errors import InvalidInput, UnknownVideo
from x2l_cluster.messages import Found
from x2l_cluster.types import Answer

if TYPE_CHECKING:
    from x2l_cluster.needles import Script

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
        folder: gets the videos and, in ``up``, all that the service keeps; an earlier run in the same folder does no
            harm.
        console: where progress goes.
    """

    def __init__(self, folder: Path, model: str | None, console: Console) -> None:
        self.folder, self._model, self._console = folder, model, console
        self.told: list[Told] = []
        self.found: Found | None = None
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

    @property
    def service(self) -> Path:
        """The folder of the service."""
        return self.folder / "up"

    def path(self, video: str) -> Path:
        return self.folder / f"{video}.mp4"

    def run(self) -> Iterator[Told]:
        """Renders, has it indexed, asks; yields every question as soon as it is answered. The service lives as long as
        this generator."""
        begun = time.monotonic()
        scripts = self._scripts()
        with Started(self.service, self._model) as service:
            for video, script in scripts.items():
                self._render(video, script)
                service.check()
            with self._console.status("bringing the service up"):
                url = service.url()
            self._say(f"x2l is up at {url}")
            with X2L(url) as x2l:
                self._index(x2l, url)
                for video, script in scripts.items():
                    for told in self._ask(x2l, video, script):
                        self.told.append(told)
                        self.seconds = time.monotonic() - begun
                        yield told
                self.found = x2l.search(self.best.question, limit=3)
        self._say("the service is stopped; nothing of it runs any more")

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def _scripts(self) -> dict[str, Script]:
        from x2l_cluster.needles import make_script

        return {video: make_script(seed, duration_s=DURATION_S, split="eval") for video, seed in SEEDS.items()}

    def _render(self, video: str, script: Script) -> None:
        from x2l_cluster.needles.files import write_mp4

        with self._console.status(f"rendering {video}"):
            part = self.path(video).with_suffix(".part")
            write_mp4(script, part, footage=_clip() if video == "footage" else None)
            part.replace(self.path(video))

    def _index(self, x2l: X2L, url: str) -> None:
        """Both are submitted at once, and watched one after the other."""
        jobs = {}
        for video in SEEDS:
            with suppress(UnknownVideo):  # an earlier run's
                x2l.delete(video)
            with progress.sent(self._console, video) as report:
                jobs[video] = x2l.index(self.path(video), video=video, progress=report)
        for video, job in jobs.items():
            remote.watched(x2l, job.id, video, url=url)

    def _ask(self, x2l: X2L, video: str, script: Script) -> Iterator[Told]:
        from x2l_cluster.needles import grade, make_questions

        for question in make_questions(script, per_kind=PER_KIND):  # type: ignore[arg-type]
            answer = remote.answered(x2l, video, question.text, max_tokens=16)
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
