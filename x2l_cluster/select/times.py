"""Times named in a question: "at 1:02", "after two minutes", "in the last 10 seconds".

A question that names a time needs no scorer for it: the time pins its chunk (:func:`pins`), and the model is told the
moment in the unit its own timestamps have (:func:`gloss`): base-60 arithmetic is not the model's job. English only; a
question in another language simply has no times, or those that clocks spell.

A false friend costs one needless chunk, a missed time a wrong answer; so clocks ("1:02") count wherever they stand,
amounts ("42 seconds") only with a word that makes a moment of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from x2l_cluster.select.amounts import Amount, Form, find_amounts, lowered
from x2l_cluster.types import Span

SPAN_CHUNKS = 4
"""A named stretch pins all chunks it overlaps if they are at most so many; a longer one is left to the scorer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeRef:
    """A time that ``question[start_char:end_char]`` names.

    Attributes:
        span: the stretch meant; of an open one ("after 1:00") it runs to the end of the video, of a point it is empty.
        point: the moment, where it is one (also the near end of an open stretch).
        moments: (character after its words, seconds) of every moment spelt in numbers, for :func:`gloss`.
    """

    span: Span
    start_char: int
    end_char: int
    point: float | None = None
    moments: tuple[tuple[int, float], ...] = ()


# In the rules, C stands for a clock time, Q for an amount, N for the n-th minute: find_times puts them in as one
# character each, so that a rule reads like the phrase.
_C, _Q, _N = "\ue000", "\ue001", "\ue002"
_X = f"[{_C}{_Q}]"
_VIDEO = r"(?:\s+of\s+(?:the|this)\s+(?:video|clip|film|movie|recording|footage|lecture|talk|show)\b|(?!\s+of\b))"
_START = rf"\b(?:beginning|start|opening)\b{_VIDEO}"
_END = rf"\b(?:end|ending)\b{_VIDEO}"
_UNIT = r"(?P<unit>second|minute|hour)\b"
_RULES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(rule))
    for name, rule in (
        ("span", rf"\bbetween\s+(?:the\s+)?{_X}\s*(?:and|to|-|–)\s*(?:the\s+)?{_X}"),
        ("span", rf"\bfrom\s+{_X}\s*(?:to|until|till|through|-|–)\s*{_X}"),
        ("span", rf"{_X}\s*(?:-|–|to|until)\s*{_X}"),
        ("end_minus", rf"{_Q}\s+(?:before|from|to)\s+(?:the\s+(?:very\s+)?)?end\b{_VIDEO}"),
        ("after", rf"\b(?:after|past|beyond|since)\s+the\s+(?:first|initial|opening)\s+(?:{_Q}|{_UNIT})"),
        ("before_last", rf"\b(?:before|until|till)\s+the\s+(?:last|final|closing)\s+(?:{_Q}|{_UNIT})"),
        ("first", rf"\b(?:first|initial|opening)\s+(?:{_Q}|{_UNIT})"),
        ("last", rf"(?:^|\b(?:the|its|in|during|over|within)\s+)(?:very\s+)?last\s+(?:{_Q}|{_UNIT})"),
        ("last", rf"\b(?:final|closing)\s+(?:{_Q}|{_UNIT})"),
        ("point", rf"{_X}\s+(?:in\s?to\b|in(?=\s*(?:[,?.!;]|$)))"),
        ("point", rf"\b(?:at|around|about|near|by|on)\s+(?:about\s+|around\s+)?the\s+{_X}(?:[\s-]+(?:mark|point))"),
        ("after", rf"\b(?:after|past|beyond|since|starting\s+(?:at|from))\s+(?:the\s+)?{_X}(?:[\s-]+(?:mark|point))?"),
        ("after", rf"\bfrom\s+{_X}(?:\s+on(?:wards?)?\b)?"),
        ("before", rf"\b(?:before|until|till|up\s+to|prior\s+to)\s+(?:the\s+)?{_X}(?:[\s-]+(?:mark|point))?"),
        ("point", rf"(?:\bat|@)\s*(?:about\s+|around\s+|exactly\s+|roughly\s+|approximately\s+|time\s+)?{_X}"),
        ("point", rf"(?<!lasts )(?<!last )(?<!takes )(?<!take )\b(?:around|near)\s+{_Q}"),
        ("point", rf"{_Q}[\s-]+(?:mark|point)\b"),
        ("point", _C),
        ("nth", _N),
        ("start", rf"\b(?:at|in|from|near|since|right\s+at)\s+the\s+(?:very\s+)?{_START}"),
        ("start", r"\b(?:video|clip|film|movie|recording)\s+(?:starts?|begins?|opens?)\b"),
        ("end", rf"\b(?:at|in|near|towards?|by|until|right\s+at)\s+the\s+(?:very\s+)?{_END}"),
        ("end", r"\b(?:video|clip|film|movie|recording)\s+(?:ends?|finish(?:es)?|closes?)\b"),
    )
)
_UNITS = {"second": 1.0, "minute": 60.0, "hour": 3600.0}


def find_times(question: str, duration_s: float) -> tuple[TimeRef, ...]:
    """The times a question names, in order. Those outside ``[0, duration_s]`` are not times of this video: left out."""
    amounts = find_amounts(question)
    skeleton, places = _skeleton(lowered(question), amounts)
    to = _Places(places, amounts)
    refs: list[tuple[int, int, TimeRef]] = []
    for name, rule in _RULES:
        for match in rule.finditer(skeleton):
            if any(match.start() < end and start < match.end() for start, end, _ in refs):
                continue
            inside = [amount for place, amount in to.jumps if match.start() <= place < match.end()]
            ref = _ref(name, match, inside, duration_s, to)
            if ref is not None:
                refs.append((match.start(), match.end(), ref))
    return tuple(ref for _, _, ref in sorted(refs, key=lambda item: item[0]))


def _skeleton(text: str, amounts: Sequence[Amount]) -> tuple[str, list[int]]:
    """The text with one character for every amount (and the gloss behind it), and where those characters are."""
    signs = {Form.CLOCK: _C, Form.AMOUNT: _Q, Form.NTH: _N}
    out, places, at = "", [], 0
    for amount in amounts:
        out += text[at : amount.start]
        places.append(len(out))
        out += signs[amount.form]
        at = amount.end + amount.glossed
    return out + text[at:], places


class _Places:
    """From places in the skeleton back to characters of the question."""

    def __init__(self, places: Sequence[int], amounts: Sequence[Amount]) -> None:
        self.jumps = list(zip(places, amounts, strict=True))

    def start(self, at: int) -> int:
        before = [(place, amount) for place, amount in self.jumps if place < at]
        return at - before[-1][0] - 1 + before[-1][1].end + before[-1][1].glossed if before else at

    def end(self, at: int) -> int:
        """Of an exclusive end; a gloss at the very end is not part of the words."""
        if any(place == at - 1 for place, _ in self.jumps):
            return next(amount.end for place, amount in self.jumps if place == at - 1)
        return self.start(at)


def _ref(name: str, match: re.Match[str], amounts: list[Amount], duration_s: float, to: _Places) -> TimeRef | None:
    """What a rule's match means; None for a time outside the video."""
    seconds = [amount.seconds for amount in amounts]
    if not seconds and match.re.groups and match["unit"]:
        seconds = [_UNITS[match["unit"]]]
    low, high = (min(seconds), max(seconds)) if seconds else (0.0, 0.0)
    moments = tuple((amount.end, amount.seconds) for amount in amounts if 0 <= amount.seconds <= duration_s)
    start, end, point = low, low, True
    match name:
        case "start":
            start = end = 0.0
        case "end":
            start = end = duration_s
        case "end_minus":
            start = end = duration_s - low
            moments = ()
        case "before_last":
            start, end, moments = 0.0, duration_s - low, ()
        case "after":
            end = duration_s
        case "before":
            start = 0.0
        case "first":
            start, end, moments, point = 0.0, min(low, duration_s), (), False
        case "last":
            start, end, moments, point = max(duration_s - low, 0.0), duration_s, (), False
        case "nth":
            end, moments, point = min(low + amounts[0].unit_s, duration_s), (), False
        case "span":
            end, point = min(high, duration_s), False
    near = end if name in ("before", "before_last") else start
    if not 0 <= start <= end <= duration_s or not 0 <= near <= duration_s:
        return None
    return TimeRef(
        span=Span(start_s=start, end_s=end),
        start_char=to.start(match.start()),
        end_char=to.end(match.end()),
        point=near if point else None,
        moments=moments,
    )


def gloss(question: str, duration_s: float) -> str:
    """The question with `` (42.0 seconds)`` right after the words of every moment it names in numbers.

    "What is shown at 00:42?" becomes "What is shown at 00:42 (42.0 seconds)?". Nothing else changes; doing it again
    changes nothing. Lengths ("the first 30 seconds") and times outside the video get none.
    """
    moments = dict(moment for ref in find_times(question, duration_s) for moment in ref.moments)
    already = {amount.end for amount in find_amounts(question) if amount.glossed}
    for end, seconds in sorted(moments.items(), reverse=True):
        if end not in already:
            question = f"{question[:end]} ({seconds:.1f} seconds){question[end:]}"
    return question


def pins(question: str, spans: Sequence[Span], duration_s: float) -> tuple[int, ...]:
    """Places in ``spans`` (of the chunks, in time order) of the chunks that the question names by time, rising.

    A point pins the chunk that shows it; "before" a chunk's very first moment pins the one ahead of it too. An open
    stretch pins the chunk at its named end, a closed one all it overlaps if they are at most ``SPAN_CHUNKS``. A time
    in no chunk (not indexed yet) pins nothing.
    """
    found: set[int] = set()
    for ref in find_times(question, duration_s):
        if ref.point is not None:
            here = _holder(ref.point, spans)
            found.update(() if here is None else (here,))
            if here and 0 < ref.point == ref.span.end_s == spans[here].start_s and ref.span.start_s < ref.point:
                found.add(here - 1)
        else:
            over = [i for i, span in enumerate(spans) if span.overlaps(ref.span)]
            found.update(over if len(over) <= SPAN_CHUNKS else ())
    return tuple(sorted(found))


def _holder(time_s: float, spans: Sequence[Span]) -> int | None:
    """The chunk that shows a moment. A chunk's last frame is still shown in the gap up to the next chunk, and after
    the last chunk for as long as a chunk lasts (containers round their durations)."""
    for i, (span, after) in enumerate(pairwise(spans)):
        if span.start_s <= time_s < after.start_s:
            return i if time_s < 2 * span.end_s - span.start_s else None
    if spans and spans[-1].start_s <= time_s < max(2 * spans[-1].end_s - spans[-1].start_s, spans[-1].end_s + 1e-3):
        return len(spans) - 1
    return None
