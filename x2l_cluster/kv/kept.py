"""The folder a server of ours keeps its data in: one owner, one writer.

Two servers that append to the same files would ruin them. So a process that wants the folder takes a kernel lock for
itself, and another one that it hands down to the server it starts: the first ends with the process, the second with the
last process that writes. Whoever owns the folder and finds the second taken knows that a server outlived its owner.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from x2l_cluster.errors import StoreUnavailable
from x2l_cluster.kv.files import Held, errors_as_store, held

_PATIENCE_S = 10.0
"""What a server gets to write its last lines and end."""


class Kept:
    """Such a folder, made when it is missing, from entering on.

    Raises StoreUnavailable when another process owns it, or an old server does not stop.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self._locks = ExitStack()
        self._writer: Held | None = None

    @property
    def writer(self) -> int:
        """The descriptor that a server has to inherit."""
        assert self._writer is not None, "enter the context first"
        return self._writer.fd

    def __enter__(self) -> Self:
        with errors_as_store(self.folder), ExitStack() as locks:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not locks.enter_context(held(self.folder / "owner.lock")).mine:
                raise StoreUnavailable(f"another process owns {self.folder}; stop it, or give another folder")
            self._writer = self._last_writer_gone(locks)
            self._locks = locks.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._locks.close()

    def listening(self, path: Path) -> None:
        """Notes where the server is reached, for whoever finds it without its owner."""
        os.pwrite(self.writer, os.fsencode(path) + b"\n", 0)

    def _last_writer_gone(self, locks: ExitStack) -> Held:
        """The lock of the writer. A server that still has it is told to stop, at the place it was said to listen."""
        lock = self.folder / "writer.lock"
        writer = locks.enter_context(held(lock))
        if not writer.mine:
            _stop(lock.read_bytes().partition(b"\n")[0])
            writer = locks.enter_context(held(lock, patience_s=_PATIENCE_S))
        if not writer.mine:
            raise StoreUnavailable(
                f"a server that outlived its owner still writes to {self.folder} and does not stop: end the "
                "valkey-server with that folder in its command line"
            )
        return writer


def _stop(address: bytes) -> None:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as line:  # one that is ending already does not answer
        line.settimeout(_PATIENCE_S)
        line.connect(address)
        line.sendall(b"SHUTDOWN\r\n")
        line.recv(1)
