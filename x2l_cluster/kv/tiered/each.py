"""Doing something to every tier, whichever of them answer."""

from __future__ import annotations

from x2l_cluster.errors import StoreUnavailable


class Each:
    """Goes on after a store that does not answer; the first such error is raised when all is done."""

    def __init__(self) -> None:
        self._depth = 0
        self._first: StoreUnavailable | None = None

    def __enter__(self) -> Each:
        self._depth += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        self._depth -= 1
        if isinstance(error, StoreUnavailable) and self._depth:
            self._first = self._first or error
            return True
        if error is None and not self._depth and self._first is not None:
            raise self._first
        return False
