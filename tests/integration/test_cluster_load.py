"""Load on a whole service over a Ray cluster of four nodes: nothing is lost, nothing done twice, whoever is killed.

The small versions take a few videos; ``make soak`` takes thirty, and two hundred questions at once.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.cluster_load import (
    KILLS,
    Memory,
    Told,
    answers_of_one_engine,
    check_jobs,
    films,
    kill_one_after_the_other,
    load,
    until,
    whole,
)

SOAK = [pytest.mark.soak, pytest.mark.timeout(3000)]


@pytest.mark.parametrize(
    "size", [pytest.param((4, 4, 16), id="small"), pytest.param((30, 6, 200), id="large", marks=SOAK)]
)
def test_many_videos_at_once_and_many_questions_over_them(tmp_path, size, record_testsuite_property):
    count, chunks, questions = size
    made, told, again = films(tmp_path, count, chunks), Told(), Told()
    with whole(tmp_path) as service, Memory() as memory:
        asyncio.run(load(service, made, questions, told))
        check_jobs(service, made, chunks, told)
        memory.next_period()
        asyncio.run(load(service, made, questions, again))  # the jobs are the same ones: they were given their keys
        assert {film: job.id for film, job in again.jobs.items()} == {film: job.id for film, job in told.jobs.items()}
    said = answers_of_one_engine(tmp_path / "alone", made, told)
    for load_ in (told, again):
        assert load_.ended == questions and load_.asked_at_once == questions
        assert not load_.failed and not load_.degraded
        assert {key: {answer.text for answer in answers} for key, answers in load_.answers.items()} == {
            key: {said[key]} for key in load_.answers
        }
    first, second = memory.periods
    grown = {name: second[name] / first[name] for name in first.keys() & second.keys()}
    record_testsuite_property("grown", max(grown.values()))
    assert max(grown.values()) < 1.25


def _shuffled(seed: int) -> list[str]:
    return random.Random(seed).sample(list(KILLS), len(KILLS))


@pytest.mark.parametrize(
    ("size", "order"),
    [
        pytest.param((4, 4, 16), list(KILLS), id="small"),
        pytest.param((30, 6, 200), list(KILLS), id="large", marks=SOAK),
        *(pytest.param((12, 5, 60), _shuffled(seed), id=f"order {seed}", marks=SOAK) for seed in range(4)),
    ],
)
def test_whoever_is_killed_in_the_middle_of_that_loses_no_job_and_no_chunk(
    tmp_path, size, order, record_testsuite_property
):
    count, chunks, questions = size
    made, told, after = films(tmp_path, count + 1, chunks), Told(), Told()
    *made, new = made

    async def chaos(service):
        killing = asyncio.create_task(kill_one_after_the_other(service, told, count * chunks, order))
        await load(service, made, questions, told, wait=False)
        return await killing

    async def well_again(service):
        """By itself, and as it was."""
        await until(lambda: len(service.answer_pids()) == 2)
        await until(lambda: len(service.prefill_pids()) == 2)
        await load(service, [new], len(new.questions), after)

    with whole(tmp_path) as service:
        killed = asyncio.run(chaos(service))
        check_jobs(service, made, chunks, told)
        asyncio.run(well_again(service))
        check_jobs(service, [*made, new], chunks, told, after)
    said = answers_of_one_engine(tmp_path / "alone", [*made, new], told, after)
    record_testsuite_property("killed", "; ".join(killed))
    record_testsuite_property("answers", f"{told.ended} whole, {told.degraded} degraded, failed {dict(told.failed)}")
    assert told.ended == questions
    for answers in (told.answers, after.answers):
        for key, several in answers.items():
            assert {answer.text for answer in several if not answer.degraded} <= {said[key]}
    assert not after.degraded and not after.failed
    if count > 4:
        assert not [what for what in killed if "too late" in what]
