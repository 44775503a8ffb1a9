"""Load on a whole service over a Ray cluster of four nodes: nothing is lost, nothing done twice, whoever is killed.

The small versions take a few videos; ``make soak`` takes thirty, and two hundred questions at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster_load import (
    KILLS,
    Film,
    Memory,
    Told,
    Whole,
    answers_of_one_engine,
    check_jobs,
    films,
    kill_one_after_the_other,
    load,
    until,
    whole,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """For the small versions, in their order."""
    with whole(tmp_path_factory.mktemp("whole")) as service:
        yield service


def test_a_few_videos_at_once_and_questions_over_them(shared, tmp_path, record_testsuite_property):
    _many(shared, tmp_path, films(tmp_path, 4, 4), 16, record_testsuite_property)


def test_whoever_is_killed_loses_no_job_and_no_chunk(shared, tmp_path, record_testsuite_property):
    made = films(tmp_path, 5, 4, of="other")
    _killed(shared, tmp_path, made, 16, list(KILLS), record_testsuite_property)


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_thirty_videos_at_once_and_two_hundred_questions_over_them(tmp_path, record_testsuite_property):
    with whole(tmp_path) as service:
        _many(service, tmp_path, films(tmp_path, 30, 6), 200, record_testsuite_property)


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("videos", "questions", "order"),
    [
        pytest.param(30, 200, list(KILLS), id="thirty"),
        *(
            pytest.param(12, 60, random.Random(seed).sample(list(KILLS), len(KILLS)), id=f"order {seed}")
            for seed in range(4)
        ),
    ],
)
def test_whoever_is_killed_in_the_middle_of_all_that_loses_no_job_and_no_chunk(
    tmp_path, videos, questions, order, record_testsuite_property
):
    with whole(tmp_path) as service:
        killed = _killed(service, tmp_path, films(tmp_path, videos + 1, 6), questions, order, record_testsuite_property)
    assert not [what for what in killed if "too late" in what]


def _many(
    service: Whole, folder: Path, made: list[Film], questions: int, record: Callable[[str, object], None]
) -> None:
    told, again = Told(), Told()
    with Memory() as memory:
        asyncio.run(load(service, made, questions, told))
        check_jobs(service, made, told)
        memory.next_period()
        asyncio.run(load(service, made, questions, again))  # the jobs are the same ones: they were given their keys
        assert {film: job.id for film, job in again.jobs.items()} == {film: job.id for film, job in told.jobs.items()}
    said = answers_of_one_engine(folder / "alone", made, told)
    for load_ in (told, again):
        assert load_.ended == questions and load_.asked_at_once == questions
        assert not load_.failed and not load_.degraded
        assert {key: {answer.text for answer in answers} for key, answers in load_.answers.items()} == {
            key: {said[key]} for key in load_.answers
        }
    first, second = memory.periods
    grown = {name: second[name] / first[name] for name in first.keys() & second.keys()}
    record("grown", f"{max(grown.values()):.2f} of {len(grown)} workers; {sorted(second.values())} bytes")
    assert max(grown.values()) < 1.25


def _killed(
    service: Whole,
    folder: Path,
    made: list[Film],
    questions: int,
    order: list[str],
    record: Callable[[str, object], None],
) -> list[str]:
    """All but the last of the films are indexed and asked about while parts are killed, the last one afterwards."""
    told, after = Told(), Told()
    *made, new = made

    async def chaos() -> list[str]:
        killing = asyncio.create_task(kill_one_after_the_other(service, told, sum(film.chunks for film in made), order))
        await load(service, made, questions, told, wait=False)
        return await killing

    async def well_again() -> None:
        """By itself, and as it was."""
        await until(lambda: len(service.answer_pids()) == 2)
        await until(lambda: len(service.prefill_pids()) == 2)
        await load(service, [new], len(new.questions), after)

    killed = asyncio.run(chaos())
    check_jobs(service, made, told)
    asyncio.run(well_again())
    check_jobs(service, [*made, new], told, after)
    said = answers_of_one_engine(folder / "alone", [*made, new], told, after)
    record("killed", "; ".join(killed))
    record("answers", f"{told.ended} whole, {told.degraded} degraded, failed {dict(told.failed)}")
    record("chunks", f"{len(told.rows)} seen sealed, none made again; attempts {told.attempts}")
    assert told.ended == questions
    for answers in (told.answers, after.answers):
        for key, several in answers.items():
            assert {answer.text for answer in several if not answer.degraded} <= {said[key]}
    assert not after.degraded and not after.failed
    return killed
