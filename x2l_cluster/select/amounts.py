"""Clock times and amounts of time in an English sentence: the words, without what they refer to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()
_WORDS = {word: n for n, word in enumerate(_ONES)} | {word: 10 * n for n, word in enumerate(_TENS, start=2)}

_WORD = rf"(?:(?:{'|'.join(_TENS)})(?:[\s-]+(?:{'|'.join(_ONES[1:10])}))?|{'|'.join(reversed(_ONES))})"
_NUMBER = rf"(?:\d{{1,6}}(?:\.\d{{1,6}})?|\b{_WORD}\b)"
_UNITS = {
    3600.0: r"(?:hours?|hrs?\.?|h)(?![a-z])",
    60.0: r"(?:minutes?|mins?\.?|m)(?![a-z])",
    1.0: r"(?:seconds?|secs?\.?|s)(?![a-z])",
}
_ANY_UNIT = "|".join(_UNITS.values())
_GLUE = r"(?:\s*,?\s*(?:and\s+)?)"


def _part(size: float, name: str) -> str:
    number = rf"(?P<{name}>{_NUMBER}|\ban?\b)(?:\s+and\s+(?P<{name}_half>a\s+half))?"
    return rf"{number}(?:\s*-\s*|\s*){_UNITS[size]}(?:\s+and\s+(?P<{name}_tail>a\s+half))?"


_H, _M, _S = _part(3600.0, "h"), _part(60.0, "m"), _part(1.0, "s")
_GLOSS = r"\s*\(\d+(?:\.\d+)? seconds\)"
_AMOUNT = re.compile(
    rf"(?<![\w.:])(?:{_H}(?:{_GLUE}{_M.replace('<m', '<hm')})?(?:{_GLUE}{_S.replace('<s', '<hs')})?"
    rf"|{_M}(?:{_GLUE}{_S.replace('<s', '<ms')})?|{_S})"
    rf"|\bhalf\s+an?\s+(?P<half>{_ANY_UNIT})"
)
_CLOCK = re.compile(r"(?<![\w:.])(\d{1,3}):([0-5]\d)(?::([0-5]\d))?(\.\d+)?(?![\d:])(?!\.\d)(?!\w)")
_NAMED = re.compile(rf"\b(?P<unit>minute|second)\s+(?:number\s+)?(?P<n>{_NUMBER})(?!\s*(?:{_ANY_UNIT}))")
_NTH = re.compile(rf"\b(?P<n>\d+(?:st|nd|rd|th)|{'|'.join(_ORDINALS[1:])})\s+(?P<unit>minute|second)\b")
_BARE = re.compile(
    rf"(?<=\bbetween\s)(?P<a>{_NUMBER})(?=\s+and\s)|(?<=\bfrom\s)(?P<b>{_NUMBER})(?=\s+(?:to|until|till|through)\s)"
    rf"|(?<!\d)(?P<c>\d{{1,6}}(?:\.\d{{1,6}})?)(?=\s*[-–]\s*\d)"
)
_NO_CLOCK_BEFORE = re.compile(
    r"\b(?:score|scores|scored|ratio|aspect|odds|shows?|showing|reads?|reading|says?|displays?|chapter|verse|won|lost|"
    r"result)(?:\s+(?:of|is|was|are|at|a|an|the|by))*\s+$"
)
_NO_CLOCK_AFTER = re.compile(r"^\s*(?:[ap]\.?m\b|o'clock|(?:aspect\s+)?ratio|score|win|lead|format|odds)")
_DECADE = re.compile(r"\bthe\s+(?:mid-?|late\s+|early\s+)?$")


class Form(StrEnum):
    CLOCK = "clock"
    """A moment by itself: 1:02, minute 3."""
    AMOUNT = "amount"
    """42 seconds: a moment only with words like "at" around it."""
    NTH = "nth"
    """The third minute: a stretch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """``text[start:end]`` says so many seconds. ``unit_s`` is the size of the last unit named."""

    start: int
    end: int
    seconds: float
    form: Form
    unit_s: float = 1.0
    glossed: int = 0
    """Length of a gloss that follows already."""


def lowered(text: str) -> str:
    """Lower case at the same length (some letters would become two), and free of private characters."""
    return "".join(" " if "\ue000" <= c <= "\uf8ff" else c.lower() if len(c.lower()) == 1 else c for c in text)


def find_amounts(text: str) -> list[Amount]:
    """All of them in order, not overlapping; what only looks like one (a score, a decade, 16:9) left out."""
    text = lowered(text)
    found: list[Amount] = []

    def take(start: int, end: int, seconds: float, form: Form, unit_s: float = 1.0) -> None:
        if all(end <= other.start or other.end + other.glossed <= start for other in found):
            gloss = re.compile(_GLOSS).match(text, end)
            found.append(
                Amount(
                    start=start,
                    end=end,
                    seconds=seconds,
                    form=form,
                    unit_s=unit_s,
                    glossed=gloss.end() - end if gloss else 0,
                )
            )

    for match in _CLOCK.finditer(text):
        if _NO_CLOCK_BEFORE.search(text[: match.start()]) or _NO_CLOCK_AFTER.match(text[match.end() :]):
            continue
        first, second, third, fraction = match.groups()
        seconds = int(first) * 60 + int(second)
        if third is not None:
            seconds = seconds * 60 + int(third)
        take(match.start(), match.end(), seconds + float(fraction or 0), Form.CLOCK)
    for match in _NTH.finditer(text):
        digits = match["n"].rstrip("stndrh")
        n = int(digits) if digits.isdigit() else _ORDINALS.index(match["n"]) + 1
        if n >= 1:
            unit_s = 60.0 if match["unit"] == "minute" else 1.0
            take(match.start(), match.end(), (n - 1) * unit_s, Form.NTH, unit_s)
    for match in _AMOUNT.finditer(text):
        amount = _seconds(match)
        if amount is not None and not _false_friend(text, match):
            take(match.start(), match.end(), *amount)
    for match in _NAMED.finditer(text):
        unit_s = 60.0 if match["unit"] == "minute" else 1.0
        take(match.start(), match.end(), _number(match["n"]) * unit_s, Form.CLOCK, unit_s)
    found.sort(key=lambda amount: amount.start)
    return sorted([*found, *_bare(text, found)], key=lambda amount: amount.start)


def _bare(text: str, found: list[Amount]) -> list[Amount]:
    """The 10 of "between 10 and 20 seconds": a number that takes the unit of the amount after it."""
    extra = []
    for match in _BARE.finditer(text):
        follower = next((amount for amount in found if amount.start >= match.end()), None)
        if (
            follower is not None
            and follower.form is Form.AMOUNT
            and re.fullmatch(r"\s*(?:and|to|until|till|through|-|–)\s*", text[match.end() : follower.start])
        ):
            extra.append(
                Amount(
                    start=match.start(),
                    end=match.end(),
                    seconds=_number(match[0]) * follower.unit_s,
                    form=Form.AMOUNT,
                    unit_s=follower.unit_s,
                )
            )
    return extra


def _seconds(match: re.Match[str]) -> tuple[float, Form, float] | None:
    """The value of an amount; None for a bare "m", which may be metres."""
    if match["half"]:
        unit_s = next(size for size, unit in _UNITS.items() if re.fullmatch(unit, match["half"]))
        return 0.5 * unit_s, Form.AMOUNT, unit_s
    total, unit_s, parts = 0.0, 1.0, 0
    for name, size in (("h", 3600.0), ("hm", 60.0), ("hs", 1.0), ("m", 60.0), ("ms", 1.0), ("s", 1.0)):
        if match[name] is None:
            continue
        half = 0.5 if match[f"{name}_half"] or match[f"{name}_tail"] else 0.0
        total += (_number(match[name]) + half) * size
        unit_s = size
        parts += 1
    if parts == 1 and re.search(r"\dm$|\sm$", match[0]):
        return None
    return total, Form.AMOUNT, unit_s


def _false_friend(text: str, match: re.Match[str]) -> bool:
    """ "The 90s" is a decade, "30 seconds long" a length."""
    before, after = text[: match.start()], text[match.end() :]
    if re.fullmatch(r"\d*0s", match[0]) and _DECADE.search(before):
        return True
    return re.match(r"[\s-]*(?:long|apart|each|per|intervals?|ago)\b", after) is not None


def _number(text: str) -> float:
    if text in ("a", "an"):
        return 1.0
    if text[0].isdigit():
        return float(text)
    return float(sum(_WORDS[word] for word in re.split(r"[\s-]+", text)))
