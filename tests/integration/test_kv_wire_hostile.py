"""The wire client against servers that lie, stall, cut, send it in circles, or show the wrong certificate."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Event
from time import monotonic
from urllib.parse import urlencode

import psutil
import pytest

from tests.wire import ScriptedServer, make_certificate, pipes_to, says
from x2l_cluster.errors import StoreUnavailable
from x2l_cluster.kv.embedded import EmbeddedValkey
from x2l_cluster.kv.store import Priority
from x2l_cluster.kv.wire import WireClient
from x2l_cluster.kv.wire.breaker import BreakerState
from x2l_cluster.kv.wire.cluster import slot_of
from x2l_cluster.kv.wire.errors import Closed, Garbled, Late


@pytest.mark.parametrize(
    "answer",
    [
        b"$9999999999\r\n",
        b"*3\r\n",
        b"+OK\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"x" * 10_000,
        b"$3\r\nabcdef\r\n",
    ],
)
def test_nonsense_is_an_error_takes_no_memory_and_opens_the_breaker(answer: bytes) -> None:
    before = psutil.Process().memory_info().vms
    with ScriptedServer(says(answer)) as server, WireClient(server.url, base_s=5) as client:
        for _ in range(3):
            with pytest.raises(Garbled):
                client.get("k")
        assert server.accepted == 3  # no connection that spoke nonsense is used again
        assert set(client.stats.breakers.values()) == {BreakerState.OPEN}
        assert client.stats.events["garbled"] == 3
    assert psutil.Process().memory_info().vms - before < (200 << 20)


def test_a_large_length_without_the_bytes_fills_no_memory() -> None:
    before = psutil.Process().memory_info().rss
    with (
        ScriptedServer(says(b"$536870912\r\nabc")) as server,
        WireClient(server.url, base_s=0.2, per_mib_s=0) as client,
    ):
        with pytest.raises(Late):
            client.get("k")
        assert psutil.Process().memory_info().rss - before < (50 << 20)


def drips(line: socket.socket) -> None:
    """A byte of a large value now and then, for ever."""
    line.recv(65536)
    line.sendall(b"$1000000\r\n")
    line.settimeout(0.02)
    while True:
        line.sendall(b"x")
        try:
            line.recv(1)
            return
        except TimeoutError:
            continue


@pytest.mark.parametrize("handler", [drips, says(b"$100000\r\nabc"), says(b"$5"), says(b"")])
def test_who_stalls_or_drips_is_cut_at_the_deadline(handler: object) -> None:
    with ScriptedServer(handler) as server, WireClient(server.url, base_s=0.7, per_mib_s=0) as client:  # type: ignore[arg-type]
        started = monotonic()
        with pytest.raises(Late):
            client.get("k")
        assert 0.69 < monotonic() - started < 2


def test_who_never_reads_is_cut_at_the_deadline() -> None:
    done = Event()
    with ScriptedServer(lambda line: done.wait() and None) as server:
        with WireClient(server.url, base_s=0.4, per_mib_s=0) as client:
            started = monotonic()
            with pytest.raises(Late):
                client.write("k", ("SET", "k", bytes(32 << 20)))
            assert 0.39 < monotonic() - started < 2
        done.set()


def test_cut_in_the_middle_is_tried_once_more_only_where_it_had_worked_before() -> None:
    def cut(line: socket.socket) -> None:
        line.recv(65536)
        line.sendall(b"$100\r\nabc")
        line.shutdown(socket.SHUT_RDWR)

    with ScriptedServer(cut) as server, WireClient(server.url) as client:
        with pytest.raises(Closed, match="before its reply was complete"):
            client.get("k")
        assert server.accepted == 1

    turns: list[int] = []

    def cut_second(line: socket.socket) -> None:
        turns.append(1)
        line.recv(65536)
        line.sendall(b"$1\r\nx\r\n")
        if len(turns) == 1:
            line.recv(65536)
            line.sendall(b"$1\r\n")
            line.shutdown(socket.SHUT_RDWR)

    with ScriptedServer(cut_second) as server, WireClient(server.url) as client:
        assert [client.get("k"), client.get("k")] == [b"x", b"x"]
        assert (server.accepted, client.stats.reconnected) == (2, 1)


def test_an_answer_goes_before_the_index_that_waited_longer() -> None:
    begun, go, seen = Event(), Event(), []

    def slow(line: socket.socket) -> None:
        while asked := line.recv(65536):
            seen.append(asked.split(b"\r\n")[4])
            begun.set()
            go.wait()
            line.sendall(b"$-1\r\n" if b"GET" in asked else b"+OK\r\n")

    with ScriptedServer(slow) as server, WireClient(server.url, connections=1, base_s=30) as client:
        with ThreadPoolExecutor(5) as pool:
            pool.submit(client.get, "first")
            begun.wait()
            for n, (work, *arguments) in enumerate(
                [
                    (client.write, "write", ("SET", "write", b"")),
                    (lambda key: client.get(key, priority=Priority.PREFETCH), "prefetch"),
                    (client.get, "fine"),
                    (lambda key: client.get(key, priority=Priority.COARSE), "coarse"),
                ]
            ):
                pool.submit(work, *arguments)
                while client.stats.waiting <= n:
                    pass
            go.set()
        assert seen == [b"first", b"coarse", b"fine", b"prefetch", b"write"]


@pytest.mark.parametrize("at_once", [True, False])
def test_bytes_nobody_asked_for_are_not_the_next_answer(at_once: bool) -> None:
    sent = Event()

    def talkative(line: socket.socket) -> None:
        line.recv(65536)
        line.sendall(b"$3\r\nyes\r\n" + (b"$4\r\nevil\r\n" if at_once else b""))
        if not at_once:
            Event().wait(0.02)
            line.sendall(b"$4\r\nevil\r\n")
        sent.set()
        line.recv(65536)

    with ScriptedServer(talkative) as server, WireClient(server.url) as client:
        for _ in range(3):
            assert client.get("k") == b"yes"
            sent.wait()
            sent.clear()
            Event().wait(0.06)  # a connection idle for a moment is trusted
        assert server.accepted == 3


def test_who_gets_no_turn_is_told_apart_from_who_gets_no_answer() -> None:
    with ScriptedServer(says()) as server, WireClient(server.url, connections=1, base_s=0.5) as client:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(client.get, "k")
            while not client.stats.in_flight_bytes:
                pass
            with pytest.raises(Late, match="no turn"):
                client.get("k", size=0, base_s=0.1)
            with pytest.raises(Late, match=r"did not answer|not done"):
                first.result()
        assert (client.stats.events["late"], client.stats.events["no_turn"]) == (1, 1)


def test_a_server_that_is_loading_is_left_alone_for_a_while() -> None:
    answers = [b"-LOADING the dataset is in the way\r\n"] * 3
    with ScriptedServer(says(*answers)) as server, WireClient(server.url) as client:
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="LOADING"):
                client.get("k")
        with pytest.raises(Closed, match="left alone"):
            client.get("k")
        assert server.accepted == 1


# --- redirections, by script ----------------------------------------------------------------------------------------

SLOT = slot_of(b"k")


def cluster_node(answer: bytes, slots: bytes = b"-NOPERM no map for you\r\n") -> object:
    """Answers GET with ``answer``, ASKING with OK and CLUSTER SLOTS with ``slots``."""

    def handle(line: socket.socket) -> None:
        while asked := line.recv(65536):
            if b"ASKING" in asked:
                line.sendall(b"+OK\r\n")
            elif b"CLUSTER" in asked:
                line.sendall(slots)
            else:
                line.sendall(answer)

    return handle


def test_moved_is_followed_and_remembered_even_without_a_map() -> None:
    with ExitStack() as stack:
        holder = stack.enter_context(ScriptedServer(cluster_node(b"$3\r\nyes\r\n")))  # type: ignore[arg-type]
        moved = f"-MOVED {SLOT} 127.0.0.1:{holder.port}\r\n".encode()
        seed = stack.enter_context(ScriptedServer(cluster_node(moved)))  # type: ignore[arg-type]
        client = stack.enter_context(WireClient(seed.url))
        assert [client.get("k") for _ in range(5)] == [b"yes"] * 5
        assert client.stats.redirected == 1


def test_ask_is_followed_once_and_not_remembered() -> None:
    seen: list[bytes] = []

    def importer(line: socket.socket) -> None:
        while asked := line.recv(65536):
            seen.append(asked)
            line.sendall(b"+OK\r\n" if b"ASKING" in asked else b"$3\r\nyes\r\n")

    with ExitStack() as stack:
        target = stack.enter_context(ScriptedServer(importer))
        ask = f"-ASK {SLOT} 127.0.0.1:{target.port}\r\n".encode()
        seed = stack.enter_context(ScriptedServer(cluster_node(ask)))  # type: ignore[arg-type]
        client = stack.enter_context(WireClient(seed.url))
        assert [client.get("k") for _ in range(3)] == [b"yes"] * 3
        assert client.stats.redirected == 3
        assert [b"ASKING" in asked for asked in seen] == [True, False] * 3


def test_servers_that_point_at_each_other_are_an_error_in_time() -> None:
    with ExitStack() as stack:
        answers: list[bytes] = [b"", b""]

        def node(n: int) -> object:
            def handle(line: socket.socket) -> None:
                while line.recv(65536):
                    line.sendall(answers[n])

            return handle

        servers = [stack.enter_context(ScriptedServer(node(n))) for n in range(2)]  # type: ignore[arg-type]
        for n in range(2):
            answers[n] = f"-MOVED {SLOT} 127.0.0.1:{servers[1 - n].port}\r\n".encode()
        client = stack.enter_context(WireClient(servers[0].url))
        with pytest.raises(StoreUnavailable, match="in a circle"):
            client.get("k")


def test_a_transaction_waits_for_a_slot_on_its_way_until_its_deadline() -> None:
    ask = f"-ASK {SLOT} 127.0.0.1:1\r\n".encode()
    turns: list[int] = []

    def migrating(line: socket.socket) -> None:
        while line.recv(65536):
            turns.append(1)
            refused = b"+OK\r\n" + ask + b"-TRYAGAIN\r\n" + b"-EXECABORT\r\n"
            done = b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n:1\r\n"
            line.sendall(refused if len(turns) in (1, 2, 4) or len(turns) > 5 else done)

    with ScriptedServer(migrating) as server, WireClient(server.url, base_s=0.5) as client:
        commands = ("SET", "k", b"v"), ("HSET", "{k}h", "f", 1)
        assert client.write("k", *commands) == [b"OK", 1]
        assert client.write("k", *commands) == [b"OK", 1]
        with pytest.raises(Late):
            client.write("k", *commands)


# --- TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def valkey_socket() -> Iterator[str]:
    """TLS ends in front of a real server (the one in the wheel is built without)."""
    with EmbeddedValkey() as server:
        yield server.url.removeprefix("unix://")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    folder = tmp_path_factory.mktemp("tls")
    return {
        "good": make_certificate(folder, "good", alt="IP:127.0.0.1"),
        "elsewhere": make_certificate(folder, "elsewhere", alt="DNS:example.org"),
        "client": make_certificate(folder, "client", alt="DNS:client"),
    }


def tls_server(pair: tuple[str, str], valkey_socket: str, *, clients: str | None = None) -> ScriptedServer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    if clients:
        context.load_verify_locations(clients)
        context.verify_mode = ssl.CERT_REQUIRED
    return ScriptedServer(pipes_to(valkey_socket), tls=context)


def test_tls_carries_values_of_every_size(valkey_socket: str, certificates: dict[str, tuple[str, str]]) -> None:
    good = certificates["good"]
    query = urlencode({"ssl_ca_certs": good[0]})
    with tls_server(good, valkey_socket) as server, WireClient(f"{server.url}?{query}") as client:
        for size in (0, 1, 5000, 1_000_000, 3 << 20):
            value = bytes(range(256)) * (size // 256) + bytes(size % 256)
            assert client.write("k", ("SET", "k", value), ("HSET", "h", "k", size))[0] == b"OK"
            mine = memoryview(bytearray(size))
            assert client.get("k", into=mine) == value == mine
        assert client.get("none") is None
        assert client.stats.dialled == 1


def test_certificates_are_checked_for_issuer_and_name(
    valkey_socket: str, certificates: dict[str, tuple[str, str]]
) -> None:
    good, elsewhere = certificates["good"], certificates["elsewhere"]
    trusting = urlencode({"ssl_ca_certs": elsewhere[0]})
    with tls_server(elsewhere, valkey_socket) as server:
        for query in ("", urlencode({"ssl_ca_certs": good[0]}), trusting):
            with WireClient(f"{server.url}?{query}") as client, pytest.raises(Closed, match=r"(?i)certificate"):
                client.get("k")
        for query in (f"{trusting}&ssl_check_hostname=false", "ssl_cert_reqs=none"):
            with WireClient(f"{server.url}?{query}") as client:
                assert client.get("none") is None


def test_clients_show_their_own_certificate_when_asked(
    valkey_socket: str, certificates: dict[str, tuple[str, str]]
) -> None:
    good, mine = certificates["good"], certificates["client"]
    with tls_server(good, valkey_socket, clients=mine[0]) as server:
        query = {"ssl_ca_certs": good[0], "ssl_certfile": mine[0], "ssl_keyfile": mine[1]}
        with WireClient(f"{server.url}?{urlencode(query)}") as client:
            assert client.get("none") is None
        with WireClient(f"{server.url}?{urlencode({'ssl_ca_certs': good[0]})}") as client, pytest.raises(Closed):
            client.get("none")


def test_a_plain_client_and_a_stalled_handshake_end_in_time(
    valkey_socket: str, certificates: dict[str, tuple[str, str]]
) -> None:
    with ScriptedServer(says()) as silent, WireClient(silent.url.replace("redis", "rediss"), base_s=0.3) as client:
        started = monotonic()
        with pytest.raises(Late):
            client.get("k", size=0)
        assert monotonic() - started < 2
    tls = tls_server(certificates["good"], valkey_socket)
    with tls, WireClient(tls.url.replace("rediss", "redis"), base_s=1) as client, pytest.raises(StoreUnavailable):
        client.get("k")
