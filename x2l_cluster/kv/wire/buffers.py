"""Memory that has been touched before.

A page touched for the first time costs more than the copy into it, so buffers are used again. Nobody hands them back:
a buffer returns when the last view of it is gone.
"""

from __future__ import annotations

from collections import deque
from weakref import ref

import numpy as np
from numpy.typing import NDArray

_SMALLEST = 64 << 10
_LARGEST = 64 << 20


class Buffers:
    """Lends buffers by power-of-two sizes; of every size at most ``keep_bytes`` wait to be used again.

    Only what a value fills is ever touched, so the rest of a buffer costs addresses, not memory.
    """

    def __init__(self, keep_bytes: int = 64 << 20) -> None:
        self._keep_bytes = keep_bytes
        # Buffers come back from within the collector, at any moment, in any thread: single steps that need no lock.
        self._free: dict[int, deque[NDArray[np.uint8]]] = {}
        self._lent: dict[int, ref[NDArray[np.uint8]]] = {}

    def lend(self, nbytes: int) -> memoryview:
        """A writable view of so many bytes of anything; it and every view made of it keep the buffer lent."""
        if not _SMALLEST <= nbytes <= _LARGEST:
            return np.empty(nbytes, np.uint8).data
        size = 1 << (nbytes - 1).bit_length()
        free = self._free.setdefault(size, deque(maxlen=max(1, self._keep_bytes // size)))
        try:
            buffer = free.pop()  # the one used last is the one still in the caches
        except IndexError:
            buffer = np.empty(size, np.uint8)
        view = buffer[:nbytes]

        def back(gone: ref[NDArray[np.uint8]]) -> None:
            self._lent.pop(id(gone), None)
            free.append(buffer)

        watch = ref(view, back)
        self._lent[id(watch)] = watch
        return view.data
