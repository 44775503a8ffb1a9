"""A service of one's own, as a process: what ``x2l demo`` asks, and what ends with it."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from x2l_cluster.errors import X2LError, error_class

_STOP_S: Final = 60.0
"""What it gets to let answers end and jobs stop at their next chunk."""


class Started:
    """``x2l up`` on a free port, over a folder, from entering on; used once :meth:`url` has returned.

    It is told to stop by the end of its standard input, which comes when this process ends, however that ends. What it
    says goes into ``service.log`` in the folder.
    """

    def __init__(self, folder: Path, model: str | None) -> None:
        self._folder = folder
        self._words = ["--port", "0", "--data", str(folder), "--api-keys", "open", "--while-read", "--json"]
        self._words += [] if model is None else ["--model", model]

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "service.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "x2l_cluster.cli", "up", *self._words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for us, who then close it in order
            )
        return self

    def url(self) -> str:
        """Where it listens, once it does. Raises what it failed with."""
        return str(self._told()["url"])

    def check(self) -> None:
        """Raises what it failed with, if it has ended."""
        if self._process.poll() is not None:
            self._told()

    def _told(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        told: dict[str, Any] = json.loads(self._process.stdout.readline() or "{}")
        if "url" in told:
            return told
        self._process.wait()
        raise _failure(told, self._folder / "service.log")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def _failure(told: dict[str, Any], log: Path) -> X2LError:
    if "error" in told:
        return error_class(told["error"]["code"])(told["error"]["message"])
    return X2LError(f"the service ended before it was up; {log} says why")
