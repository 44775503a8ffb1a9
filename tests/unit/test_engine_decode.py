"""The decoder: joining, leaving, stopping, sampling."""

from __future__ import annotations

import pytest

from tests.tiny import qwen3_vl
from x2l_cluster.engine.assemble import Prefix
from x2l_cluster.engine.decode import Decoder, Generation
from x2l_cluster.errors import InvalidInput, PromptTooLong
from x2l_cluster.models import View

QUESTIONS = ["What is it?", "Is a red star shown?", "When does the blue ring appear?", "How many?"]
FREE = Generation(max_tokens=10, ignore_stop_ids=True)


@pytest.fixture(scope="module")
def lm():
    return qwen3_vl(5)


@pytest.fixture(scope="module")
def prefix(lm):
    return Prefix.of(lm, lm.prompt("?").prefix)


def join(decoder, lm, prefix, question, generation=FREE):
    prompt = lm.prompt(question)
    return decoder.join(View([prefix.page]), lm.embed_text(prompt.suffix, prefix.end), generation)


def alone(lm, prefix, question, generation=FREE):
    decoder = Decoder(lm)
    stream = join(decoder, lm, prefix, question, generation)
    list(decoder.run())
    return stream


def test_streams_that_join_and_leave_at_any_step_write_what_they_write_alone(lm, prefix):
    expected = {question: alone(lm, prefix, question).ids for question in QUESTIONS}
    assert len({tuple(ids) for ids in expected.values()}) > 1
    decoder = Decoder(lm)
    streams = {}
    for question in QUESTIONS:
        streams[question] = join(decoder, lm, prefix, question)
        for _ in range(3):
            decoder.step()
    list(decoder.run())
    assert {question: stream.ids for question, stream in streams.items()} == expected
    assert decoder.size == 0


def test_a_cancelled_stream_leaves_and_the_others_go_on(lm, prefix):
    expected = alone(lm, prefix, QUESTIONS[1]).ids
    decoder = Decoder(lm)
    first, second = (join(decoder, lm, prefix, question) for question in QUESTIONS[:2])
    decoder.step()
    first.cancel()
    list(decoder.run())
    assert (first.finish, len(first.ids)) == ("cancelled", 1)
    assert (second.finish, second.ids) == ("length", expected)


def test_the_same_seed_samples_the_same_text_and_another_seed_another(lm, prefix):
    def sampled(seed: int) -> list[int]:
        hot = Generation(max_tokens=10, ignore_stop_ids=True, temperature=2.0, seed=seed)
        return alone(lm, prefix, QUESTIONS[0], hot).ids

    assert sampled(1) == sampled(1)
    assert len({tuple(sampled(seed)) for seed in range(4)}) == 4


def test_a_tiny_nucleus_is_greedy(lm, prefix):
    nucleus = Generation(max_tokens=10, ignore_stop_ids=True, temperature=1.0, top_p=1e-6, seed=3)
    assert alone(lm, prefix, QUESTIONS[0], nucleus).ids == alone(lm, prefix, QUESTIONS[0]).ids


def test_a_stop_text_ends_the_answer_and_is_cut_off(lm, prefix):
    text = alone(lm, prefix, QUESTIONS[0]).text
    stop = text[3:5]
    stream = alone(lm, prefix, QUESTIONS[0], Generation(max_tokens=10, ignore_stop_ids=True, stop=(stop,)))
    assert stream.finish == "stop"
    assert stream.text == text[: text.index(stop)]


def test_an_answer_that_would_leave_the_trained_positions_is_refused(lm, prefix):
    with pytest.raises(PromptTooLong, match="lower max_tokens"):
        join(Decoder(lm), lm, prefix, QUESTIONS[0], Generation(max_tokens=lm.spec.max_position))


@pytest.mark.parametrize("bad", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_impossible_generations_are_refused(bad):
    with pytest.raises(InvalidInput):
        Generation(**bad)
