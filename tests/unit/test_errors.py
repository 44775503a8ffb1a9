"""The tree of errors: stable codes, statuses, and the way there and back as a problem."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from x2l_cluster import errors
from x2l_cluster.errors import Overloaded, X2LError, error_class
from x2l_cluster.messages import Problem


def tree(kind: type[X2LError] = X2LError) -> Iterator[type[X2LError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


def test_every_error_has_a_code_of_its_own_and_says_what_it_is() -> None:
    kinds = list(tree())
    assert len({kind.code for kind in kinds}) == len(kinds) > 50
    assert all(kind.__doc__ and 400 <= kind.http_status < 600 for kind in kinds)


def test_the_page_that_shows_the_tree_shows_all_of_it() -> None:
    assert errors.__doc__
    words = [line.strip("│├└─ ").split(" ")[0] for line in errors.__doc__.splitlines()]
    assert set(words) >= {kind.__name__ for kind in tree()}


@pytest.mark.parametrize("kind", list(tree()), ids=lambda kind: kind.code)
def test_an_error_travels_as_a_problem_and_comes_back(kind: type[X2LError]) -> None:
    problem = Problem.of(kind("video v1: gone"))
    assert (problem.status, problem.retryable) == (kind.http_status, kind.retryable)
    assert "\n" not in problem.title
    assert type(problem.error) is kind
    assert str(problem.error) == "video v1: gone"
    assert Problem.of(problem.error) == problem


def test_when_to_try_again_travels_too() -> None:
    error = Overloaded("64 questions wait", retry_after_s=2.5)
    assert Problem.of(error).error.retry_after_s == 2.5
    assert pickle.loads(pickle.dumps(error)).retry_after_s == 2.5  # noqa: S301 (ours, between our own processes)


def test_a_code_of_a_newer_service_is_an_error_all_the_same() -> None:
    assert error_class("not_yet_thought_of") is X2LError
