"""One of many processes that use an arena at random and look at every byte: ``… arena_user PATH SEED [ROUNDS]``.

Blobs say which version they are; a reader then knows every byte. Prints ``round`` now and then, ``done`` at the end.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from tests.arena import KEY, PAGE, fill
from x2l_cluster.errors import BlockMissing, StoreFull
from x2l_cluster.kv.host import HostKV
from x2l_cluster.types import BlockKey

KEYS = [replace(KEY, kind=kind, chunk=chunk) for chunk in range(12) for kind in ("l", "h", "x-1")]
BUDGET = 40 * PAGE


@cache
def blob_of(key: BlockKey, version: int) -> bytes:
    size = 100 + (sum(str(key).encode()) * 7919 + version * 104729) % (4 * PAGE)
    return bytes([version]) + fill(key, size, version)


def verify(key: BlockKey, blob: memoryview) -> None:
    assert blob == blob_of(key, blob[0]), f"{key} is not what was put"


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def work(store: HostKV, dice: random.Random, rounds: int, tell: Callable[[str], object] = say) -> None:
    mine = memoryview(bytearray(10 * PAGE))
    held: list[tuple[BlockKey, memoryview]] = []
    for number in range(rounds):
        key, what = dice.choice(KEYS), dice.random()
        with suppress(BlockMissing, StoreFull):
            if what < 0.3:
                store.put(key, blob_of(key, dice.randrange(3)))
            elif what < 0.6:
                verify(key, store.get(key, mine))
            elif what < 0.75:
                with store.lease(key) as view:
                    verify(key, view)
            elif what < 0.9:
                held.append((key, store.get(key)))
            elif what < 0.95:
                store.delete([key])
            else:
                blob = blob_of(key, dice.randrange(3))
                with store.reserve(key, len(blob)) as room:
                    room[:] = blob
        if len(held) > 2:
            verify(*held.pop(0))
        if number % 100 == 0:
            tell("round")


if __name__ == "__main__":
    with HostKV(Path(sys.argv[1]), budget_bytes=BUDGET, page_bytes=PAGE, patience_s=30) as opened:
        work(opened, random.Random(int(sys.argv[2])), int(sys.argv[3]))
    say("done")
