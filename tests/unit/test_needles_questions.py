"""Questions, their true answers, the grader, and the chunks an answer needs."""

from __future__ import annotations

import re

import pytest

from x2l_cluster.needles import KINDS, Marker, Question, Script, grade, make_questions, make_script, needed_chunks

SPANS = [(16.0 * i, 16.0 * i + 15.0) for i in range(12)]


def _marker(words: str) -> Marker:
    color, shape = words.split()[-2:]
    return Marker(color=color, shape=shape)


def _named(question: Question) -> list[Marker]:
    colors = "red|green|blue|yellow|pink|white|cyan"
    return [_marker(m) for m in re.findall(rf"(?:{colors}) [a-z]+", question.text)]


def _scripts() -> list[Script]:
    return [make_script(seed, groups=96, split="eval") for seed in range(25)]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_follow_from_the_script(kind: str) -> None:
    asked = 0
    for script in _scripts():
        counts = script.counts()
        first = {m: min(s.start_s for s in script.scenes if s.marker == m) for m in counts}
        for question in make_questions(script, per_kind=6):
            if question.kind != kind:
                continue
            asked += 1
            named = _named(question)
            if kind == "retrieval":
                (scene,) = [s for s in script.scenes if s.marker == named[0]]
                assert scene.code is not None
                assert question.answer == scene.code.text
                assert question.spans == ((scene.code.start_s, scene.code.end_s),)
            elif kind == "order":
                assert _marker(question.answer) == min(named, key=lambda m: first[m])
            elif kind == "existence":
                assert question.answer == ("yes" if named[0] in counts else "no")
            elif kind == "count":
                assert question.answer == str(counts.get(named[0], 0))
            elif question.tolerance_s:
                stamp = float(question.answer.split()[0])
                assert stamp - 2.5 <= first[named[0]] <= stamp + 0.5  # the group's last frame is at stamp + 0.5
            else:
                low, _ = question.spans[0]
                shown = script.scene_at(low)
                assert shown is script.scene_at(low - 1.9) is script.scene_at(low + 1.9)
                assert shown.marker == _marker(question.answer)
                assert f"({low:.1f} seconds)" in question.prompt
                assert question.prompt != question.text
    assert asked > 60


def test_existence_is_balanced() -> None:
    answers = [q.answer for s in _scripts() for q in make_questions(s, per_kind={"existence": 20})]
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_questions_repeat_for_a_seed_and_change_with_it() -> None:
    script = make_script(1, groups=96)
    assert make_questions(script, seed=1) == make_questions(script, seed=1)
    assert make_questions(script, seed=1) != make_questions(script, seed=2)


def test_a_clock_that_starts_late_moves_every_time() -> None:
    script = make_script(2, groups=96)
    early, late = (make_questions(script, per_kind={"time": 8}, clock_s=c) for c in (0.0, 300.0))
    stamps = [[float(q.answer.split()[0]) for q in qs if q.tolerance_s] for qs in (early, late)]
    assert stamps[0]
    assert stamps[1] == [s + 300 for s in stamps[0]]
    assert all(q.spans[0][0] < 192 for q in late)


def _question(kind: str, answer: str, tolerance: float = 0.0) -> Question:
    return Question(kind=kind, text="?", prompt="?", answer=answer, spans=((20.0, 24.0),), scene=0,  # type: ignore[arg-type]
                    tolerance_s=tolerance)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "answer", "tolerance", "right", "wrong"),
    [
        ("retrieval", "KXRT", 0.0, ["KXRT", "kxrt", "K X R T.", " KXRT\n"], ["KXRD", "KXR", "", "The code is KXRT"]),
        ("time", "a red star", 0.0, ["a red star", "Red star.", "the red star"], ["a red ring", "red", "star red"]),
        ("time", "42.5 seconds", 2.05, ["42.5 seconds", "0:42", "44.5", "40.5 s"], ["45 seconds", "soon", "1:42"]),
        ("order", "the red star", 0.0, ["the red star", "Red star"], ["the blue ring"]),
        ("existence", "yes", 0.0, ["yes", "Yes, it is."], ["no", "", "not yes"]),
        ("count", "2", 0.0, ["2", "Two.", "2 scenes"], ["3", "", "22"]),
        ("count", "0", 0.0, ["0", "none"], ["1"]),
    ],
)
def test_the_grader(kind: str, answer: str, tolerance: float, right: list[str], wrong: list[str]) -> None:
    question = _question(kind, answer, tolerance)
    assert [grade(question, text) for text in right] == [True] * len(right)
    assert [grade(question, text) for text in wrong] == [False] * len(wrong)


def test_every_true_answer_is_graded_right() -> None:
    assert all(grade(q, q.answer) for s in _scripts() for q in make_questions(s))


def test_a_retrieval_question_needs_the_one_chunk_that_shows_the_whole_code() -> None:
    for script in _scripts():
        for question in make_questions(script, per_kind={"retrieval": 6}):
            (chunk,) = needed_chunks(question, SPANS)
            low, high = question.spans[0]
            assert 16 * chunk <= low < high <= 16 * (chunk + 1)


def test_other_kinds_need_every_chunk_that_meets_their_spans() -> None:
    question = Question(kind="count", text="?", prompt="?", answer="2", spans=((10.0, 40.0), (100.0, 101.0)), scene=0)
    assert needed_chunks(question, SPANS) == [0, 1, 2, 6]
    between = Question(kind="time", text="?", prompt="?", answer="x", spans=((31.6, 31.6),), scene=0)
    assert needed_chunks(between, SPANS) == [1]
    absent = Question(kind="existence", text="?", prompt="?", answer="no", spans=(), scene=None)
    assert needed_chunks(absent, SPANS) == []
