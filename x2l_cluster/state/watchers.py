"""Who wants to be told of what, inside one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock


class Watchers:
    """Callbacks by topic."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._by_topic: dict[str, dict[object, Callable[[], None]]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_topic)

    @contextmanager
    def watching(self, topic: str, notify: Callable[[], None]) -> Iterator[None]:
        mine = object()
        with self._lock:
            self._by_topic.setdefault(topic, {})[mine] = notify
        try:
            yield
        finally:
            with self._lock:
                rest = self._by_topic[topic]
                del rest[mine]
                if not rest:
                    del self._by_topic[topic]

    def tell(self, *topics: str) -> None:
        with self._lock:
            told = [notify for topic in topics for notify in self._by_topic.get(topic, {}).values()]
        for notify in told:
            notify()

    def tell_all(self) -> None:
        with self._lock:
            told = [notify for notifies in self._by_topic.values() for notify in notifies.values()]
        for notify in told:
            notify()
