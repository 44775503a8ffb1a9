"""Questions about a script, with their true answers, and the grader."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from x2l_cluster.needles.script import ALL_MARKERS, Marker, Scene, Script

Kind = Literal["retrieval", "time", "order", "existence", "count"]
KINDS: tuple[Kind, ...] = get_args(Kind)

RETRIEVAL = (
    "What code is shown with the {m}?",
    "Which code is shown with the {m}?",
    "What is the code in the scene with the {m}?",
    "Which code appears with the {m}?",
    "What code appears in the {m} scene?",
    "Read the code shown next to the {m}.",
    "Tell me the code that belongs to the {m}.",
    "What letters are shown with the {m}?",
    "Which four letters appear while the {m} is visible?",
    "The {m}: what is its code?",
)
TIME_AT = (
    "What is shown at {t}?",
    "What can be seen at {t}?",
    "Which marker is shown at {t}?",
    "What appears at {t}?",
    "What do we see at {t}?",
    "At {t}, what is shown?",
    "Which sign is visible at {t}?",
)
TIME_WHEN = (
    "When does the {m} appear?",
    "When is the {m} shown?",
    "At what time does the {m} appear?",
    "When does the {m} first appear?",
    "When does the scene with the {m} start?",
    "When do we first see the {m}?",
    "At what time is the {m} first seen?",
)
ORDER = (
    "Which appears first, the {a} or the {b}?",
    "Which comes first, the {a} or the {b}?",
    "What is shown first, the {a} or the {b}?",
    "Which is shown earlier, the {a} or the {b}?",
    "The {a} or the {b}: which appears first?",
    "Which do we see first, the {a} or the {b}?",
)
EXISTENCE = (
    "Is {am} shown?",
    "Is there {am} in the video?",
    "Does {am} appear?",
    "Can {am} be seen?",
    "Do we see {am}?",
    "Is {am} ever shown in the video?",
)
COUNT = (
    "How many scenes show the {m}?",
    "How many scenes have the {m}?",
    "In how many scenes is the {m} shown?",
    "In how many scenes does the {m} appear?",
    "How often does the {m} appear?",
    "How many times is the {m} shown?",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question.

    ``text`` is what a user types, ``prompt`` the same with every time it names repeated in the video's clock
    (`` (42.0 seconds)``), which is what a model is sent. ``spans`` are the stretches (seconds) one must see to
    answer; empty if nothing is to be seen (the marker does not exist). ``tolerance_s`` holds for answers that
    are times.
    """

    kind: Kind
    text: str
    prompt: str
    answer: str
    spans: tuple[tuple[float, float], ...]
    scene: int | None
    tolerance_s: float = 0.0


def make_questions(
    script: Script,
    *,
    per_kind: int | dict[Kind, int] = 4,
    seed: int = 0,
    frame_times_s: Sequence[float] | None = None,
    group_frames: int = 2,
    clock_s: float = 0.0,
) -> list[Question]:
    """Random questions about ``script``, at most ``per_kind`` of each kind (fewer where the video has no more).

    ``frame_times_s`` are the sampled frames (default: one a second), of which ``group_frames`` make a group; they
    fix the answers that are times. ``clock_s`` is added to every time that is asked or answered.
    """
    times = list(frame_times_s) if frame_times_s is not None else [float(t) for t in range(int(script.duration_s))]
    maker = _Maker(
        script, random.Random(f"questions/{script.split}/{script.seed}/{seed}"), times, group_frames, clock_s
    )
    wanted = dict.fromkeys(KINDS, per_kind) if isinstance(per_kind, int) else per_kind
    return [q for kind, n in wanted.items() for q in maker.make(kind, n)]


class _Maker:
    def __init__(
        self, script: Script, rng: random.Random, times: list[float], group_frames: int, clock_s: float
    ) -> None:
        self.script, self.rng, self.clock = script, rng, clock_s
        self.groups = [times[i : i + group_frames] for i in range(0, len(times), group_frames)]
        self.group_s = (times[-1] - times[0]) / max(1, len(times) - 1) * group_frames if len(times) > 1 else 1.0
        self.last_s = times[-1]
        self.counts = script.counts()
        self.first: dict[Marker, Scene] = {}
        for scene in script.scenes:
            if scene.marker is not None and scene.start_s < self.last_s:
                self.first.setdefault(scene.marker, scene)
        self.unique = [s for m, s in self.first.items() if self.counts[m] == 1]
        self.absent = [m for m in ALL_MARKERS if m not in self.counts]

    def make(self, kind: Kind, n: int) -> list[Question]:
        makers: dict[Kind, Callable[[int], list[Question]]] = {
            "retrieval": self.retrieval, "time": self.time, "order": self.order,
            "existence": self.existence, "count": self.count,
        }  # fmt: skip
        return makers[kind](n)

    def _question(self, kind: Kind, text: str, answer: str, spans: list[tuple[float, float]], scene: Scene | None,
                  prompt: str | None = None, tolerance_s: float = 0.0) -> Question:  # fmt: skip
        return Question(kind=kind, text=text, prompt=prompt or text, answer=answer, spans=tuple(spans),
                        scene=None if scene is None else scene.index, tolerance_s=tolerance_s)  # fmt: skip

    def _some(self, items: list[Scene], n: int) -> list[Scene]:
        """``n`` of ``items``, each once before any comes again."""
        out: list[Scene] = []
        while items and len(out) < n:
            out += self.rng.sample(items, len(items))
        return out[:n]

    def retrieval(self, n: int) -> list[Question]:
        scenes = [s for s in self.unique if s.code is not None and s.code.end_s <= self.last_s + 1]
        return [
            self._question("retrieval", self.rng.choice(RETRIEVAL).format(m=s.marker.name), s.code.text,
                           [(s.code.start_s, s.code.end_s)], s)
            for s in self._some(scenes, n) if s.marker and s.code
        ]  # fmt: skip

    def time(self, n: int) -> list[Question]:
        return self.time_at(n * 2 // 3) + self.time_when(n - n * 2 // 3)

    def time_at(self, n: int) -> list[Question]:
        out = []
        margin = self.group_s
        roomy = [s for s in self.script.scenes if s.marker and min(s.end_s, self.last_s) - s.start_s > 2 * margin + 1]
        for scene in self._some(roomy, n):
            assert scene.marker is not None
            low, high = scene.start_s + margin + self.clock, min(scene.end_s, self.last_s) - margin + self.clock
            at = self.rng.randint(int(low) + 1, max(int(low) + 1, int(high)))
            template = self.rng.choice(TIME_AT)
            spelt = _spell_time(self.rng, at)
            out.append(self._question(
                "time", template.format(t=spelt), f"a {scene.marker.name}",
                [(at - self.clock, at - self.clock)], scene,
                prompt=template.format(t=f"{spelt} ({at:.1f} seconds)")))  # fmt: skip
        return out

    def time_when(self, n: int) -> list[Question]:
        out = []
        for scene in self._some(self.unique, n):
            assert scene.marker is not None
            for group in self.groups:
                if group[-1] >= scene.start_s:
                    break
            stamp = (group[0] + group[-1]) / 2 + self.clock
            out.append(self._question(
                "time", self.rng.choice(TIME_WHEN).format(m=scene.marker.name), f"{stamp:.1f} seconds",
                [(scene.start_s, min(scene.end_s, scene.start_s + self.group_s))], scene,
                tolerance_s=self.group_s + 0.05))  # fmt: skip
        return out

    def order(self, n: int) -> list[Question]:
        out: list[Question] = []
        while len(self.first) > 1 and len(out) < n:
            a, b = self.rng.sample(list(self.first), 2)
            first, second = self.first[a], self.first[b]
            winner = a if first.start_s < second.start_s else b
            spans = [(s.start_s, min(s.end_s, s.start_s + 2 * self.group_s)) for s in (first, second)]
            out.append(self._question("order", self.rng.choice(ORDER).format(a=a.name, b=b.name),
                                      f"the {winner.name}", spans, self.first[winner]))  # fmt: skip
        return out

    def existence(self, n: int) -> list[Question]:
        out = []
        for _ in range(n):
            there = bool(self.first) and (not self.absent or self.rng.random() < 0.5)
            marker = self.rng.choice(list(self.first)) if there else self._absent()
            spans = [(s.start_s, s.end_s) for s in self.script.scenes if s.marker == marker]
            out.append(self._question("existence", self.rng.choice(EXISTENCE).format(am=f"a {marker.name}"),
                                      "yes" if there else "no", spans, self.first.get(marker)))  # fmt: skip
        return out

    def _absent(self) -> Marker:
        """An absent marker; often one that shares colour or shape with a present one, so guessing is hard."""
        near = [m for m in self.absent if any(m.color == p.color or m.shape == p.shape for p in self.first)]
        return self.rng.choice(near if near and self.rng.random() < 0.6 else self.absent)

    def count(self, n: int) -> list[Question]:
        by_count: dict[int, list[Marker]] = {}
        for marker in self.first:
            by_count.setdefault(self.counts[marker], []).append(marker)
        if self.absent:
            by_count[0] = [self._absent() for _ in range(3)]
        out = []
        for _ in range(n):
            times = self.rng.choice([k for k in by_count for _ in range(2 if k else 1)])
            marker = self.rng.choice(by_count[times])
            spans = [(s.start_s, s.end_s) for s in self.script.scenes if s.marker == marker]
            out.append(self._question("count", self.rng.choice(COUNT).format(m=marker.name), str(times), spans,
                                      self.first.get(marker)))  # fmt: skip
        return out


def _spell_time(rng: random.Random, at: int) -> str:
    minutes, seconds = divmod(at, 60)
    forms = [f"{minutes:02d}:{seconds:02d}", f"{minutes}:{seconds:02d}", f"{at} seconds", f"{at} s"]
    if minutes:
        forms.append(f"{minutes} min {seconds} s")
    return rng.choice(forms)


_NUMBERS = {"zero": "0", "no": "0", "none": "0", "one": "1", "two": "2", "three": "3", "four": "4", "once": "1"}


def grade(question: Question, answer_text: str) -> bool:
    """Whether ``answer_text`` is right: forgiving of case, articles, punctuation and the spelling of times."""
    words = re.findall(r"[a-z0-9:.]+", answer_text.lower().replace(",", " "))
    words = [w.strip(".") for w in words if w.strip(".") and w not in {"a", "an", "the"}]
    if question.tolerance_s > 0:
        said, true = _seconds(words), _seconds(question.answer.lower().split())
        return said is not None and true is not None and abs(said - true) <= question.tolerance_s
    if question.kind == "count":
        numbers = [_NUMBERS.get(w, w) for w in words]
        return [w for w in numbers if w.isdigit()][:1] == [question.answer]
    if question.kind == "existence":
        return words[:1] == [question.answer]
    if question.kind == "retrieval":
        return "".join(words).upper() == question.answer
    return words == [w for w in question.answer.split() if w not in {"a", "an", "the"}]


def _seconds(words: list[str]) -> float | None:
    """Seconds meant by ``["42.5", "seconds"]``, ``["0:42"]`` or ``["1:02:03"]``; None if no time is there."""
    for word in words:
        parts = word.split(":")
        try:
            values = [float(p) for p in parts]
        except ValueError:
            continue
        return float(sum(v * 60**i for i, v in enumerate(reversed(values))))
    return None


def needed_chunks(question: Question, spans: Sequence[tuple[float, float]]) -> list[int]:
    """Chunks that must be seen: for retrieval those that show the whole code, else all that meet a needed span.

    ``spans`` are the chunks' ``(start_s, end_s)`` in time order; a time between two chunks belongs to the earlier.
    """
    starts = [s for s, _ in spans]
    ends = [*starts[1:], float("inf")]
    if question.kind == "retrieval":
        low, high = question.spans[0]
        shown = [min(high, e) - max(low, s) for s, e in zip(starts, ends, strict=True)]
        return [i for i, v in enumerate(shown) if v > 0 and v >= max(shown) - 1e-6]
    return [
        i
        for i, (s, e) in enumerate(zip(starts, ends, strict=True))
        if any(low < e and high >= s for low, high in question.spans)
    ]
