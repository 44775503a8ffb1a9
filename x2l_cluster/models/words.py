"""Which words of a question carry its meaning.

Plain attention scoring drowns in function words: on a real LM the right heads find the needle with content words
only, and are near chance over all tokens (DESIGN figures, ``RESULTS.md``). English, and harmless elsewhere: a word
that is not listed counts as content.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence

_FUNCTION_WORDS = frozenset(
    """
    a an the this that these those there here it its he she they them his her their we you i me my your our us
    is are was were be been being am do does did done doing has have had having can could will would shall should may
    might must
    what which who whom whose when where why how
    of in on at by for from to into onto with without within over under up down out off about as than then so
    and or but nor not no yes if else while because
    video clip film movie scene moment frame picture image shown show shows showing seen see visible appear appears
    appearing appeared displayed display presented present
    please tell name give say me
    """.split()
)
_WORD = re.compile(r"[^\W_]+(?:[.:'’-][^\W_]+)*")


def content_spans(question: str) -> list[tuple[int, int]]:
    """Character ranges of the content words, in order; all words when every one is a function word."""
    words = [match.span() for match in _WORD.finditer(question)]
    content = [(a, b) for a, b in words if question[a:b].lower() not in _FUNCTION_WORDS]
    return content or words


def tokens_within(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Indexes of the tokens whose character range overlaps one of the spans, which come in order and apart."""
    ends = [end for _, end in spans]
    found = []
    for index, (a, b) in enumerate(offsets):
        at = bisect_right(ends, a)  # the first span that ends behind the token's beginning
        if at < len(spans) and spans[at][0] < b and a < b:
            found.append(index)
    return tuple(found)
