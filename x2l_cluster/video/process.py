"""Starting, hearing and killing the decoder process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from x2l_cluster.errors import DecoderCrashed, DecodeTimeout, X2LError
from x2l_cluster.video import wire
from x2l_cluster.video.reader import GaveUp

_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "4"}
"""Keeps the process small on machines with many cores: by default pools of memory and threads grow with them."""


class DecoderProcess:
    """One run of :mod:`x2l_cluster.video.child`, answering one request.

    Started afresh (never forked: the caller may hold a CUDA context and threads), in a session of its own (so that
    Ctrl-C reaches it by way of its parent only), with standard error going to an unnamed file.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._path = request["path"]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by kill)
        paths = [os.path.abspath(place) for place in sys.path]
        self._process = subprocess.Popen(
            # -P: nothing is imported from the working directory just because the process starts there.
            [sys.executable, "-P", "-m", "x2l_cluster.video.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
            start_new_session=True,
            env=os.environ | _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        with contextlib.suppress(BrokenPipeError):  # it died at once; receive() tells how
            wire.send(self._fd(self._process.stdin), request)

    @property
    def pid(self) -> int:
        return self._process.pid

    def receive(self, deadline_s: float) -> tuple[dict[str, Any], bytearray]:
        """The next message that is not a mere sign of life.

        Raises:
            DecodeTimeout: no progress for ``deadline_s``; the process is dead by the time this is raised.
            DecoderCrashed: the process ended without saying so.
            GaveUp: its reader asks for another one.
            X2LError: what the process found wrong with the file.
        """
        try:
            header, payload = wire.receive(self._fd(self._process.stdout), deadline_s)
            while header["type"] == "beat":
                header, payload = wire.receive(self._fd(self._process.stdout), deadline_s)
        except wire.Stalled:
            self.kill()
            raise DecodeTimeout(
                f"{self._path}: the decoder made no progress for {deadline_s:g} s and was stopped; "
                "re-encode the file, or allow a longer deadline"
            ) from None
        except wire.Ended:
            raise DecoderCrashed(
                f"{self._path}: the decoder process died ({self._how()}); re-encode the file, or try again"
            ) from None
        if header["type"] == "error":
            raise GaveUp(header["message"]) if header["code"] == GaveUp.code else _error(header)
        return header, payload

    def kill(self) -> None:
        """End it now, whatever it is doing, and leave nothing behind. May be called twice."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                pipe.close()

    def _how(self) -> str:
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 300))
        said = self._log.read().decode(errors="replace").strip().rpartition("\n")[2]
        return f"{how}: {said}" if said else how

    @staticmethod
    def _fd(pipe: Any) -> int:
        return int(pipe.fileno())


def _error(header: Mapping[str, Any]) -> X2LError:
    kinds: list[type[X2LError]] = [X2LError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    by_code = {kind.code: kind for kind in reversed(kinds)}
    return by_code.get(header["code"], X2LError)(header["message"])
