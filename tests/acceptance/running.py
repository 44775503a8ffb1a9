"""A running ``x2l up``, begun by ``x2l up --json``."""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil


@dataclass(frozen=True)
class Running:
    url: str
    process: subprocess.Popen[str]
    servers: list[psutil.Process]
    stores: dict[str, str]

    @classmethod
    def of(cls, process: subprocess.Popen[str]) -> Self:
        """Once it listens."""
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        told = json.loads(line)
        servers = [child for child in psutil.Process(process.pid).children() if "valkey" in child.name()]
        assert len(servers) == 2
        return cls(told["url"], process, servers, told["stores"])

    @property
    def places(self) -> list[Path]:
        """Folders that it made outside of its own: of sockets, of shared memory."""
        arena = self.stores["store"].partition("host:")[2].partition("?")[0]
        assert arena.startswith("/dev/shm/")
        sockets = [url.partition("unix://")[2].partition("?")[0] for url in self.stores.values() if "unix://" in url]
        assert len(sockets) == 2
        return [Path(place).parent for place in (arena, *sockets)]

    def ended(self, number: signal.Signals) -> str:
        """What it wrote until it had ended, as it should when it is told to; nothing that it had started is left."""
        everything = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        assert all(place.exists() for place in self.places)
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, errors
        assert "Traceback" not in errors
        _, alive = psutil.wait_procs(everything, timeout=20)
        assert not alive
        assert not any(place.exists() for place in self.places)
        return errors

    def killed(self) -> None:
        """With -9; its servers go with it."""
        everything = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.communicate()
        _, alive = psutil.wait_procs(everything, timeout=20)
        assert not alive
