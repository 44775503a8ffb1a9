"""Which words carry meaning, and which tokens they are made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x2l_cluster.models.words import content_spans, tokens_within


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("What code is shown with the red star?", ["code", "red", "star"]),
        ("When does the blue ring appear?", ["blue", "ring"]),
        ("What is shown at 00:42?", ["00:42"]),
        ("Is it there?", ["Is", "it", "there"]),
        ("Was passiert im Video?", ["passiert", "im"]),
        ("?!", []),
    ],
)
def test_function_words_carry_no_meaning_unless_there_is_nothing_else(question, words):
    assert [question[a:b] for a, b in content_spans(question)] == words


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=12),
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=6),
)
def test_tokens_within_spans_are_those_that_overlap_one(tokens, steps):
    offsets = [(start, start + size) for start, size in tokens]
    spans, at = [], 0
    for gap, size in steps:
        spans.append((at + gap, at + gap + size))
        at += gap + size
    expected = tuple(
        i for i, (a, b) in enumerate(offsets) if a < b and any(a < end and start < b for start, end in spans)
    )
    assert tokens_within(offsets, spans) == expected
