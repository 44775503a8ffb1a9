"""kill -9 at any bytecode of the arena's code leaves an arena that works, holds only whole blobs, and leaks nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def deaths(seed: int, stride: int) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.integration.arena_deaths", str(seed), str(stride)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, int] = json.loads(done.stdout)
    return told


def test_a_death_anywhere_leaves_a_whole_arena() -> None:
    told = deaths(seed=1, stride=149)
    assert min(told.values()) >= 3, told
    assert sum(told.values()) > 100


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 7))
def test_a_death_at_many_places_leaves_a_whole_arena(seed: int) -> None:
    deaths(seed, stride=7)
