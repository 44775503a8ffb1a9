"""Servers for tests of the wire: one that does what a script says, one behind TLS, and a small real cluster."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Thread
from time import monotonic

import redis

from x2l_cluster.kv.embedded import EmbeddedValkey

Handler = Callable[[socket.socket], None]


class ScriptedServer:
    """Runs ``handler`` on every connection, in a thread of its own; what is open at the end is cut."""

    def __init__(self, handler: Handler, *, tls: ssl.SSLContext | None = None) -> None:
        self._handler, self._tls = handler, tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads: list[Thread] = []
        self.accepted = 0
        self.port = int(self._listener.getsockname()[1])
        self.url = f"{'rediss' if tls else 'redis'}://127.0.0.1:{self.port}"

    def __enter__(self) -> ScriptedServer:
        self._start(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        for line in (self._listener, *self._open):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for line in (self._listener, *self._open):
            line.close()

    def _start(self, work: Callable[[], None]) -> None:
        thread = Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                line, _ = self._listener.accept()
                self.accepted += 1
                self._open.append(line)
                self._start(lambda line=line: self._serve(line))

    def _serve(self, line: socket.socket) -> None:
        with suppress(OSError):
            if self._tls is not None:
                line = self._tls.wrap_socket(line, server_side=True)
                self._open.append(line)
            self._handler(line)


def says(*answers: bytes) -> Handler:
    """Answers every request with the next of these, then waits for the other side to go."""

    def handle(line: socket.socket) -> None:
        for answer in answers:
            if not line.recv(65536):
                return
            line.sendall(answer)
        while line.recv(65536):
            pass

    return handle


def pipes_to(path: str) -> Handler:
    """Hands everything to the server at a unix socket, and back."""

    def handle(line: socket.socket) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(path)

            def back() -> None:
                with suppress(OSError):
                    while data := server.recv(65536):
                        line.sendall(data)

            thread = Thread(target=back, daemon=True)
            thread.start()
            with suppress(OSError):
                while data := line.recv(65536):
                    server.sendall(data)
            server.shutdown(socket.SHUT_RDWR)
            thread.join(10)

    return handle


def make_certificate(folder: Path, name: str, *, alt: str) -> tuple[str, str]:
    """A self-signed certificate for ``alt`` and its key."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", f"/CN={name}", "-addext", f"subjectAltName={alt}", "-days", "2"]
    subprocess.run([*command, "-out", str(certificate), "-keyout", str(key)], check=True, capture_output=True)
    return str(certificate), str(key)


@contextmanager
def valkey_cluster(nodes: int = 3) -> Iterator[list[EmbeddedValkey]]:
    """A real cluster on loopback ports; the slots are dealt out evenly."""
    with ExitStack() as stack:
        buses = [free_port() for _ in range(nodes)]  # by default 10000 above the other, which need not be a port
        servers = [
            stack.enter_context(EmbeddedValkey(port=0, flags={"cluster-enabled": "yes", "cluster-port": str(bus)}))
            for bus in buses
        ]
        clients = [stack.enter_context(redis.Redis.from_url(server.url)) for server in servers]
        for n, client in enumerate(clients):
            client.execute_command("CLUSTER ADDSLOTSRANGE", n * 16384 // nodes, (n + 1) * 16384 // nodes - 1)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", n + 1)
            if n:
                client.execute_command("CLUSTER MEET", "127.0.0.1", servers[0].url.rpartition(":")[2], buses[0])
        deadline = monotonic() + 30
        for client in clients:
            while not all(knows_all(client, nodes)):
                assert monotonic() < deadline, "the cluster does not form"
        yield servers


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def knows_all(client: redis.Redis, nodes: int) -> tuple[bool, bool]:
    info = client.execute_command("CLUSTER INFO")
    text = info if isinstance(info, dict) else dict(line.split(":") for line in info.decode().split())
    return text["cluster_state"] == "ok", int(text["cluster_known_nodes"]) == nodes
