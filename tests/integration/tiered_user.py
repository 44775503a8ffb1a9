"""A process that reads what others put and delete, and looks at every byte: ``… tiered_user URL SEED WRITES``.

Prints ``round`` now and then.
"""

from __future__ import annotations

import random
import sys
from contextlib import suppress
from dataclasses import replace

from tests.arena import KEY
from tests.tiers import block
from x2l_cluster.errors import BlockMissing, StoreUnavailable
from x2l_cluster.kv.open import open_kv

KEYS = [replace(KEY, kind=kind, chunk=chunk) for kind in ("l", "h", "x-1") for chunk in range(6)]
BLOBS = {key: block(key, size=5000 + 3000 * key.chunk) for key in KEYS}

if __name__ == "__main__":
    dice, writes = random.Random(int(sys.argv[2])), float(sys.argv[3])
    with open_kv(sys.argv[1]) as store:
        for number in range(10**9):
            key, what = dice.choice(KEYS), dice.random()
            with suppress(BlockMissing, StoreUnavailable):
                if what < writes:
                    store.put(key, BLOBS[key])
                elif what < writes + 0.02:
                    store.delete([key]) if writes else store.prefetch([key])
                else:
                    assert store.get(key) == BLOBS[key], key
            if number % 200 == 0:
                sys.stdout.write("round\n")
                sys.stdout.flush()
