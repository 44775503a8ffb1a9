"""Who looks after the prefill workers: as many as there are jobs, within bounds, and others for those that are gone.

All it knows it asks for, of the queue and of Ray; what it remembers is only for how long something has been so. It may
be killed at any moment, and another one goes on with the workers it finds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.exceptions import RayError

from x2l_cluster.cluster.indexing import Fleet, Told
from x2l_cluster.errors import X2LError
from x2l_cluster.messages import JobState
from x2l_cluster.state.jobs import JobQueue

LOG: Final = logging.getLogger(__name__)
TICK_S: Final = 1.0
_ANSWER_S: Final = 0.5
"""How long a look at the workers waits for their answers; those that come later are taken at the next one."""
_LAST_ANSWER_S: Final = 5.0
_BACKOFF_CAP_S: Final = 60.0
_STUCK_S: Final = 120.0
"""A look takes a second or so, with stores and Ray out of reach some more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The fleet at the last look.

    Attributes:
        wanted: workers there should be.
        present: workers there are that stay, started or being started.
        answering: those of them that have loaded their model.
        busy: those of them that work on a job.
    """

    wanted: int = 0
    present: int = 0
    answering: int = 0
    busy: int = 0


@dataclass(slots=True)
class _Known:
    """What is remembered of a worker."""

    question: Any = None
    asked_s: float = 0.0
    told: Told | None = None
    sent: bool = False

    @property
    def leaves(self) -> bool:
        return self.sent or (self.told is not None and self.told.leaving)


class Supervisor:
    """Sizes a fleet by the queue, on a thread of its own.

    Args:
        least, most: workers at any time.
        idle_s: how long there must have been too many before some are sent home: a model takes time to load.
        silent_s: a worker that does not answer for so long hangs, or if it never has, is still being started.
    """

    def __init__(
        self,
        fleet: Fleet,
        queue: JobQueue,
        *,
        least: int,
        most: int,
        idle_s: float = 60.0,
        silent_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet, self._queue = fleet, queue
        self._least, self._most, self._idle_s = least, max(least, most), idle_s
        self._silent_s, self._clock = silent_s, clock
        self._known: dict[str, _Known] = {}
        self._many_s: float | None = None
        """Since when there have been more than wanted."""
        self._failures, self._start_s = 0, 0.0
        self._stopping = threading.Event()
        self._looked_s = clock()
        self._thread: threading.Thread | None = None
        self.standing = Standing()

    @property
    def healthy(self) -> bool:
        """Whether it goes on looking; that a store does not answer does not make it unwell."""
        alive = self._thread is not None and self._thread.is_alive()
        return alive and self._clock() - self._looked_s < _STUCK_S

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="x2l-supervisor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stops looking. The workers work on."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def disband(self) -> None:
        """Stops looking and sends all workers home: each ends its chunk, and puts its job back into line."""
        self.stop()
        ours, others = self._fleet.names()
        self._ask([*ours, *others], _LAST_ANSWER_S)
        for name in (*ours, *others):
            if self._known[name].told is None:
                self._fleet.give_up(name)  # not here yet, and nobody will be when it is
            else:
                self._fleet.send_home(name)

    def look(self) -> None:
        """Looks once, and does what there is to do. Raises what the queue and Ray raise."""
        ours, others = self._fleet.names()
        self._ask([*ours, *others], _ANSWER_S)  # first of all: whom nobody asks leaves
        draining = self._fleet.draining()
        for name, known in self._known.items():
            if known.sent and self._silent(known):
                self._fleet.give_up(name)
            elif not known.leaves and (name in others or self._is_lost(known, draining)):
                self._send_home([name])
        staying = [name for name in ours if not self._known[name].leaves]
        counts = self._queue.counts()
        wanted = min(max(self._least, counts[JobState.QUEUED] + counts[JobState.RUNNING]), self._most)
        if len(staying) < wanted and self._clock() >= self._start_s:
            started = self._fleet.start(wanted - len(staying))
            LOG.info("%d prefill workers are wanted: %d more are started", wanted, len(started))
            for name in started:
                self._known[name] = self._asked(name)
            staying += started
        self._shrink(staying, wanted)
        told = [told for name in staying if (told := self._known[name].told)]
        busy = sum(worker.busy for worker in told)
        self.standing = Standing(wanted=wanted, present=len(staying), answering=len(told), busy=busy)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look()
            except (X2LError, RayError) as error:
                LOG.warning("cannot look after the prefill workers just now: %s", error)
            except Exception:
                LOG.exception("looking after the prefill workers stumbled and goes on")
            self._looked_s = self._clock()
            self._stopping.wait(TICK_S)

    def _ask(self, names: list[str], within_s: float) -> None:
        """Asks those that are not being asked already, and takes what answers come within a short while."""
        for name in names:
            known = self._known.get(name)
            if known is None or known.question is None:
                self._known[name] = self._asked(name, known)
        asked = {known.question: known for known in self._known.values() if known.question is not None}
        answered = ray.wait(list(asked), num_returns=len(asked), timeout=within_s)[0] if asked else []
        for question in answered:
            self._hear(asked[question])
        for gone in self._known.keys() - set(names):
            del self._known[gone]

    def _asked(self, name: str, known: _Known | None = None) -> _Known:
        known = known or _Known()
        with suppress(ValueError):  # gone since
            known.question, known.asked_s = self._fleet.worker(name).look.remote(), self._clock()
        return known

    def _hear(self, known: _Known) -> None:
        question, known.question = known.question, None
        try:
            known.told = ray.get(question)
            self._failures = 0
        except RayError as error:
            if known.told is None and not known.sent:
                LOG.warning("a prefill worker could not be started: %s", error)
                self._failures += 1  # the next one is tried a while later, and ever later
                self._start_s = self._clock() + min(2.0**self._failures, _BACKOFF_CAP_S)
            known.told = None

    def _shrink(self, staying: list[str], wanted: int) -> None:
        if len(staying) <= wanted:
            self._many_s = None
            return
        if self._many_s is None:
            self._many_s = self._clock()
        if self._clock() - self._many_s >= self._idle_s:
            self._send_home(sorted(staying, key=self._worth)[: len(staying) - wanted])

    def _worth(self, name: str) -> int:
        """Those without work go first, before them those that cannot work yet."""
        known = self._known[name]
        return 0 if self._silent(known) else 1 if known.told and not known.told.busy else 2

    def _is_lost(self, known: _Known, draining: Collection[str]) -> bool:
        """Whether it hangs, or its node is going: what it does there it would do in vain."""
        return known.told is not None and (known.told.node in draining or self._silent(known))

    def _silent(self, known: _Known) -> bool:
        return known.question is not None and self._clock() - known.asked_s > self._silent_s

    def _send_home(self, names: Iterable[str]) -> None:
        for name in names:
            LOG.info("prefill worker %s is sent home", name)
            known = self._known[name]
            known.sent = True
            if self._silent(known):
                self._fleet.give_up(name)
            else:
                self._fleet.send_home(name)
