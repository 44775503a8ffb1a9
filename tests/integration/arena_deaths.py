"""A process that forks others, each of which dies by kill -9 at one bytecode of the arena's code, and looks after it.

``python -m tests.integration.arena_deaths SEED STRIDE`` lets one in STRIDE bytecodes of every scenario be the last one,
and says how many deaths there were in each.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from tests.arena import KEY, PAGE, check, fill, in_shared_memory
from x2l_cluster.errors import BlockMissing, X2LError
from x2l_cluster.kv import host
from x2l_cluster.kv.host import HostKV

CODE = str(Path(host.__file__).parent)
PAGES = 24
OLD = [replace(KEY, chunk=chunk) for chunk in range(5)]
SIZE = 3 * PAGE - 200
Scenario = Callable[[HostKV], object]


def opened(path: Path) -> HostKV:
    return HostKV(path, budget_bytes=PAGES * PAGE, page_bytes=PAGE, patience_s=10)


def abort(store: HostKV) -> None:
    with suppress(RuntimeError), store.reserve(replace(KEY, chunk=50), SIZE):
        raise RuntimeError


SCENARIOS: dict[str, Scenario] = {
    "put": lambda store: store.put(replace(KEY, chunk=50), fill(KEY, SIZE)),
    "replace": lambda store: store.put(OLD[2], fill(OLD[2], SIZE, 1)),
    "evict": lambda store: store.put(replace(KEY, chunk=50), fill(KEY, 14 * PAGE)),
    "abort": abort,
    "delete": lambda store: store.delete(OLD[1:3]),
    "delete_video": lambda store: store.delete_video("ada", "v1"),
    "view": lambda store: store.get(OLD[3])[0],
    "copy": lambda store: store.get(OLD[3], memoryview(bytearray(SIZE))),
    "open": lambda store: opened(store._arena.path).close(),
    "close": lambda store: store.close(),
}


def die_at(last: int) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that ends the process at that many bytecodes of the arena's code."""
    done = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal done
        if not frame.f_code.co_filename.startswith(CODE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            done += 1
            if done == last:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def lives_through(act: Callable[[], object], last: int) -> bool:
    """Whether a forked child that would die at that bytecode came to the end of what it does."""
    child = os.fork()
    if not child:
        status = 1
        try:
            sys.settrace(die_at(last))
            act()
            sys.settrace(None)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"the child failed: {status}"
    return status == 0


def deaths(scenario: Scenario, path: Path, dice: random.Random, stride: int) -> int:
    """Lets children die in a scenario until one lives; looks at what each one left."""
    count, last = 0, dice.randint(1, stride)
    while True:
        with opened(path) as store:
            for key in OLD:
                store.put(key, fill(key, SIZE))
            held = store.get(OLD[2])
            lived = lives_through(lambda: scenario(opened(path)), last)
            look_at(store)
            assert held == fill(OLD[2], SIZE)
            del held
            everything = replace(KEY, video="all")
            store.put(everything, bytes(PAGES * PAGE - 100))  # so nothing leaked
            assert list(store.keys("ada", "v1")) == []
            store.delete([everything])
        if lived:
            return count
        count += 1
        last += stride


def look_at(store: HostKV) -> None:
    """Whatever there is, is whole."""
    with store._arena.reading() as tables:
        check(tables)
    for key in store.keys("ada", "v1"):
        blob = store.get(key)
        whole = [fill(key, SIZE), fill(key, SIZE, 1), fill(KEY, SIZE), fill(KEY, 14 * PAGE)]
        assert blob in whole, f"{key} is torn"
    for key in (OLD[0], OLD[4]):
        with suppress(BlockMissing):
            assert store.get(key) == fill(key, SIZE)


def creation_deaths(dice: random.Random, stride: int) -> int:
    """The same for who makes the file; here the next one finds it alone."""
    count, last = 0, dice.randint(1, stride)
    while True:
        with in_shared_memory() as path:
            lived = lives_through(lambda: opened(path).put(KEY, fill(KEY, SIZE)), last)
            with opened(path) as store:
                look_at(store)
                store.put(KEY, fill(KEY, SIZE))
                assert store.get(KEY) == fill(KEY, SIZE)
                with store._arena.reading() as tables:
                    check(tables)
        if lived:
            return count
        count += 1
        last += stride


def main(seed: int, stride: int) -> None:
    dice = random.Random(seed)
    with in_shared_memory() as path, opened(path):  # somebody is always there, so nobody who opens it mends the tables
        told = {name: deaths(scenario, path, dice, stride) for name, scenario in SCENARIOS.items()}
    told["create"] = creation_deaths(dice, stride)
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]))
    except X2LError as error:
        sys.exit(f"{error.code}: {error}")
