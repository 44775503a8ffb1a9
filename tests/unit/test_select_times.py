"""Times named in questions: found, glossed, and pinned to their chunks; false friends left alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x2l_cluster.select.times import SPAN_CHUNKS, find_times, gloss, pins
from x2l_cluster.types import Span

HOUR = 3600.0


def chunks(count: int, length: float = 16.0) -> list[Span]:
    return [Span(start_s=i * length, end_s=(i + 1) * length) for i in range(count)]


@pytest.mark.parametrize(
    ("question", "words", "seconds"),
    [
        ("What is shown at 1:02?", "at 1:02", 62),
        ("What is shown at 00:42?", "at 00:42", 42),
        ("At 00:42, what is shown?", "At 00:42", 42),
        ("What happens at 0:12:03?", "at 0:12:03", 723),
        ("What is shown at 1:02.5?", "at 1:02.5", 62.5),
        ("What do we see at 42 seconds?", "at 42 seconds", 42),
        ("What do we see at 42 s?", "at 42 s", 42),
        ("what is there at 42s", "at 42s", 42),
        ("What is shown at 1 min 02 s?", "at 1 min 02 s", 62),
        ("What is shown at 1 min and 2 s?", "at 1 min and 2 s", 62),
        ("What is at 0h 2m 3s?", "at 0h 2m 3s", 123),
        ("What is at 2m30s?", "at 2m30s", 150),
        ("What appears after two minutes?", "after two minutes", 120),
        ("What appears after half a minute?", "after half a minute", 30),
        ("What appears after a minute and a half?", "after a minute and a half", 90),
        ("What appears after two and a half minutes?", "after two and a half minutes", 150),
        ("What appears after forty-two seconds?", "after forty-two seconds", 42),
        ("What appears after sixty seconds?", "after sixty seconds", 60),
        ("What appears at twenty one seconds?", "at twenty one seconds", 21),
        ("What comes before 90 s?", "before 90 s", 90),
        ("What happens two minutes into the video?", "two minutes into", 120),
        ("What happens two minutes in?", "two minutes in", 120),
        ("What is at the 42-second mark?", "at the 42-second mark", 42),
        ("What happens around the 2 minute mark?", "around the 2 minute mark", 120),
        ("What happens in minute 3?", "minute 3", 180),
        ("What happens at second 42?", "at second 42", 42),
        ("What happens after the first 10 seconds?", "after the first 10 seconds", 10),
        ("What happens from 1:00 on?", "from 1:00 on", 60),
        ("What is shown 10 seconds before the end?", "10 seconds before the end", HOUR - 10),
        ("What is shown at the beginning?", "at the beginning", 0),
        ("What is shown at the start of the video?", "at the start of the video", 0),
        ("What is shown at the end?", "at the end", HOUR),
        ("How does the video end?", "video end", HOUR),
        ("What is shown @1:02?", "@1:02", 62),
    ],
)
def test_points(question: str, words: str, seconds: float) -> None:
    (ref,) = find_times(question, HOUR)
    assert ref.point == seconds
    assert question[ref.start_char : ref.end_char] == words


@pytest.mark.parametrize(
    ("question", "start", "end"),
    [
        ("What is shown in the first 30 seconds?", 0, 30),
        ("What is shown in the first half a minute?", 0, 30),
        ("What is shown in the first minute?", 0, 60),
        ("Name what appears in the last 10 seconds.", HOUR - 10, HOUR),
        ("Name what appears during the final two minutes.", HOUR - 120, HOUR),
        ("Who speaks between 1:00 and 2:30?", 60, 150),
        ("Who speaks from 0:10 to 0:20?", 10, 20),
        ("Who speaks 0:10-0:20?", 10, 20),
        ("Who speaks between 2:30 and 1:00?", 60, 150),
        ("Who speaks between 10 and 20 seconds?", 10, 20),
        ("Who speaks between one and two minutes?", 60, 120),
        ("Who speaks from 10 to 20 seconds?", 10, 20),
        ("Who speaks between 10 seconds and 1 minute?", 10, 60),
        ("Who speaks in the third minute?", 120, 180),
        ("Who speaks in the 3rd minute?", 120, 180),
        ("Who speaks in the second minute?", 60, 120),
        ("Who speaks in the last two hours?", 0, HOUR),
    ],
)
def test_spans(question: str, start: float, end: float) -> None:
    (ref,) = find_times(question, HOUR)
    assert ref.point is None
    assert (ref.span.start_s, ref.span.end_s) == (start, end)


@pytest.mark.parametrize(
    "question",
    [
        "Is this a 16:9 picture?",
        "Was the score 3:2?",
        "Was the score 21:15?",
        "Is the aspect ratio 16:10?",
        "What is in the 16:10 ratio clip?",
        "When does the clock show 10:10?",
        "Did they meet at 10:30 am?",
        "Does the video last 30 seconds?",
        "How long are the 5 seconds ads?",
        "Is it a 30 seconds long clip?",
        "Is the music from the 90s?",
        "Who lived in the 1980s?",
        "Does the runner stop after 100 m?",
        "What stands at the end of the hallway?",
        "What is at the start of the queue?",
        "Which appears first, the red star or the blue ring?",
        "In how many scenes is the red star shown?",
        "When does the blue ring first appear?",
        "Which code is on the second page?",
        "Wait a second, who is that?",
        "What is the second code?",
        "Read the code 12:3456.",
        "What does version 1.2:30.4 say?",
        "What code is shown with the red star?",
        "",
        "第42秒に何が見えますか",
    ],
)
def test_false_friends(question: str) -> None:
    assert find_times(question, HOUR) == ()
    assert gloss(question, HOUR) == question


@pytest.mark.parametrize(
    ("question", "glossed"),
    [
        ("What is shown at 00:42?", "What is shown at 00:42 (42.0 seconds)?"),
        ("At 0:42, what is shown?", "At 0:42 (42.0 seconds), what is shown?"),
        ("What is shown at 42 seconds?", "What is shown at 42 seconds (42.0 seconds)?"),
        ("What is shown at 1 min 2 s?", "What is shown at 1 min 2 s (62.0 seconds)?"),
        ("What is shown at 1 min 02 s?", "What is shown at 1 min 02 s (62.0 seconds)?"),
        ("What comes after two minutes?", "What comes after two minutes (120.0 seconds)?"),
        ("What is at the 42-second mark?", "What is at the 42-second (42.0 seconds) mark?"),
        (
            "Who speaks between 1:00 and 2:30?",
            "Who speaks between 1:00 (60.0 seconds) and 2:30 (150.0 seconds)?",
        ),
        ("Who speaks in the first 30 seconds?", "Who speaks in the first 30 seconds?"),
        ("What is shown at the end?", "What is shown at the end?"),
        ("Is it at 0:10 or at 0:20?", "Is it at 0:10 (10.0 seconds) or at 0:20 (20.0 seconds)?"),
        ("What is shown at 99:00?", "What is shown at 99:00?"),
    ],
)
def test_gloss(question: str, glossed: str) -> None:
    assert gloss(question, HOUR) == glossed
    assert gloss(glossed, HOUR) == glossed
    assert pins(question, chunks(225), HOUR) == pins(glossed, chunks(225), HOUR)


@settings(max_examples=100, deadline=None)
@given(
    seconds=st.integers(0, 3599),
    form=st.sampled_from(
        ["{m:02d}:{s:02d}", "{m}:{s:02d}", "{t} seconds", "{t} s", "{m} min {s} s", "{m} minutes and {s} seconds"]
    ),
    around=st.sampled_from(["What is shown at {}?", "At {}, what is shown?", "Tell me what we see at {} please"]),
)
def test_every_spelling_of_a_time_means_that_time(seconds: int, form: str, around: str) -> None:
    spelt = form.format(m=seconds // 60, s=seconds % 60, t=seconds)
    question = around.format(spelt)
    (ref,) = find_times(question, HOUR)
    assert ref.point == seconds
    assert gloss(question, HOUR) == around.format(f"{spelt} ({seconds:.1f} seconds)")
    assert pins(question, chunks(225), HOUR) == (seconds // 16,)


PIECES = (
    *"0123456789:.-–() ?,",
    *(
        " at ",
        " to ",
        " seconds",
        " the ",
        "first ",
        "last ",
        " and ",
        "half a",
        " min",
        "end",
        "between ",
        "0:1",
        "two ",
        "from ",
    ),
)


@settings(max_examples=200, deadline=None)
@given(
    text=st.lists(st.sampled_from((*PIECES, "İ", "\ue000", "٣")), max_size=25).map("".join), duration=st.floats(0, 5000)
)
def test_any_text_is_survived_and_glossing_is_idempotent(text: str, duration: float) -> None:
    once = gloss(text, duration)
    assert gloss(once, duration) == once
    for ref in find_times(text, duration):
        assert 0 <= ref.start_char < ref.end_char <= len(text)
        assert 0 <= ref.span.start_s <= ref.span.end_s <= duration
    assert set(pins(text, chunks(5), duration)) <= set(range(5))


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is shown at 0:42?", (2,)),
        ("What is shown at 0:32?", (2,)),
        ("What comes after 0:42?", (2,)),
        ("What comes before 0:42?", (0, 1, 2)[-1:]),
        ("What comes before 0:32?", (1, 2)),
        ("What is in the first 30 seconds?", (0, 1)),
        ("What is in the last 10 seconds?", (11,)),
        ("Who speaks between 0:10 and 0:40?", (0, 1, 2)),
        ("Who speaks between 0:10 and 3:00?", ()),
        ("Who speaks between 0:16 and 0:32?", (1,)),
        ("What is shown at the end?", (11,)),
        ("What is shown at the beginning?", (0,)),
        ("Is it at 0:01 or at 3:10?", (0, 11)),
        ("What is shown at 3:12?", (11,)),
        ("What is shown at 3:13?", ()),
        ("What is shown at 59:00?", ()),
        ("What code is shown with the red star?", ()),
    ],
)
def test_pins_of_twelve_chunks(question: str, expected: tuple[int, ...]) -> None:
    assert pins(question, chunks(12), 192.0) == expected


def test_a_part_that_is_not_indexed_yet_pins_nothing() -> None:
    assert pins("What is shown at 2:30?", chunks(3), 192.0) == ()
    assert pins("What is shown at the end?", chunks(3), 192.0) == ()
    assert pins("What is shown at 0:42?", chunks(3), 192.0) == (2,)
    assert pins("What is shown at 0:42?", [], 192.0) == ()


def test_gaps_between_sampled_frames_belong_to_the_chunk_before() -> None:
    spans = [Span(start_s=0, end_s=14), Span(start_s=16, end_s=30)]
    assert pins("What is shown at 0:15?", spans, 31.0) == (0,)
    assert pins("What is shown at 0:31?", spans, 31.0) == (1,)


def test_a_plan_stays_small_whatever_the_question() -> None:
    for question in ("What is shown after 0:10?", "What is shown in the first 20 minutes?", "before 50 minutes"):
        assert len(pins(question, chunks(225), HOUR)) <= SPAN_CHUNKS
