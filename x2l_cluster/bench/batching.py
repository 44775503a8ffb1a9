"""How much a batch is worth: the same questions one at a time and many at once, by one answering loop, taking turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter, process_time
from typing import Any, Final

from x2l_cluster.engine import AnswerLoop, Generation, Limits, VideoEngine
from x2l_cluster.errors import X2LError
from x2l_cluster.types import Answer

TOGETHER: Final = 16
TOKENS: Final = 64
_PATIENCE_S: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Burst:
    """Some questions answered.

    Attributes:
        decode_s: of the device, for the tokens of all of them.
        wall_s, cpu_s: of everything: scoring, planning, reloading, decoding.
    """

    answers: list[Answer]
    wall_s: float
    cpu_s: float

    @property
    def decode_s(self) -> float:
        return sum(answer.timings["decode_s"] for answer in self.answers)


def measure_batching(
    engine: VideoEngine,
    questions: Sequence[tuple[str, str]],
    *,
    rounds: int,
    together: int = TOGETHER,
    tokens: int = TOKENS,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, Any]:
    """Each round asks the same questions one by one, then all at once; which comes first changes from round to round.

    Nothing streams, every answer has exactly ``tokens`` tokens, and is held against the one given alone. Ratios are
    medians over rounds, so what else the machine does hits both sides alike.

    Args:
        questions: (video, question); each round takes the next ``together`` of them.

    Raises:
        X2LError: an answer of the batch is another one than alone: then the figures are void.
    """
    generation = Generation(max_tokens=tokens, ignore_stop_ids=True)
    rows: list[dict[str, float]] = []
    with AnswerLoop(engine.answerer, Limits(batch=together)) as loop:

        def burst(asked: Sequence[tuple[str, str]], at_once: bool) -> _Burst:
            wall, cpu = perf_counter(), process_time()
            answers: list[Answer] = []
            for group in [asked] if at_once else [[one] for one in asked]:
                tickets = [loop.submit(engine.asked(video, text), generation) for video, text in group]
                answers += [ticket.result(_PATIENCE_S) for ticket in tickets]
            return _Burst(answers=answers, wall_s=perf_counter() - wall, cpu_s=process_time() - cpu)

        for number in range(rounds + 1):
            asked = [questions[(number * together + n) % len(questions)] for n in range(together)]
            burst(asked, at_once=True)  # whatever is reloaded is hot for both
            first = number % 2 == 0
            bursts = {at_once: burst(asked, at_once=at_once) for at_once in (first, not first)}
            alone, batch = bursts[False], bursts[True]
            _check(alone, batch, tokens)
            if number:  # the first warms up
                rows.append(_row(alone, batch, together * tokens))
                progress(number, rounds)
    names = {
        "batch16_vs_serial": "decode_s",
        "batch16_vs_serial_whole_questions": "wall_s",
        "batch16_vs_serial_whole_questions_cpu": "cpu_s",
    }
    return {
        "together": together,
        "tokens": tokens,
        "rounds": rows,
        "ratios": {
            name.replace("16", str(together)): round(
                median(row[f"serial_{what}"] / row[f"batch_{what}"] for row in rows), 3
            )
            for name, what in names.items()
        },
    }


def _check(alone: _Burst, batch: _Burst, tokens: int) -> None:
    for single, joint in zip(alone.answers, batch.answers, strict=True):
        if single.text != joint.text or not single.usage.answer_tokens == joint.usage.answer_tokens == tokens:
            raise X2LError(f"an answer about video {single.video} is another one in a batch: the benchmark is void")


def _row(alone: _Burst, batch: _Burst, tokens: int) -> dict[str, float]:
    row = {
        f"{side}_{what}": round(getattr(burst, what), 4)
        for side, burst in (("serial", alone), ("batch", batch))
        for what in ("decode_s", "wall_s", "cpu_s")
    }
    speeds = {f"{side}_tokens_per_s": round(tokens / row[f"{side}_decode_s"], 1) for side in ("serial", "batch")}
    return row | speeds
