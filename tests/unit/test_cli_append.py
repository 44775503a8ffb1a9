"""When `x2l append --follow` looks again, and when it ends."""

from __future__ import annotations

from collections.abc import Iterator

from x2l_cluster.cli.append import growths


class Recorder:
    """A file that grows at given moments, and a clock that only moves when somebody waits, or works."""

    def __init__(self, *grows_s: float) -> None:
        self.grows_s, self.now_s, self.cut_short_s = grows_s, 0.0, float("inf")

    def size(self) -> int:
        return sum(moment <= self.now_s for moment in self.grows_s)

    def wait(self, seconds: float) -> bool:
        self.now_s += seconds
        return self.now_s >= self.cut_short_s

    def looks(self, *, every_s: float = 10.0, quiet_s: float = 60.0) -> Iterator[tuple[float, int]]:
        found = growths(self.size, every_s=every_s, quiet_s=quiet_s, wait=self.wait, clock=lambda: self.now_s)
        return ((self.now_s, size) for size in found)


def test_it_looks_at_once_then_as_the_file_grows_and_ends_when_it_does_not() -> None:
    recorder = Recorder(0, 3, 5, 40)
    assert list(recorder.looks()) == [(0, 1), (10, 3), (40, 4)]
    assert 110 <= recorder.now_s <= 111  # a minute after the last look was over


def test_what_came_while_it_worked_is_looked_at_too() -> None:
    recorder = Recorder(0, 30)
    seen = []
    for now_s, size in recorder.looks(quiet_s=5.0):
        seen.append((now_s, size))
        recorder.now_s += 100  # the work takes longer than the recorder is quiet
    assert seen == [(0, 1), (100, 2)]


def test_it_ends_when_it_is_told_to_while_it_waits() -> None:
    recorder = Recorder(0, 3)
    recorder.cut_short_s = 8.0
    assert list(recorder.looks()) == [(0, 1)]
