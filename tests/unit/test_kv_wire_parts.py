"""Small parts of the wire: addresses, slots, redirections, reused buffers."""

from __future__ import annotations

import gc
import ssl
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from x2l_cluster.errors import InvalidInput
from x2l_cluster.kv.wire.address import Address, parse
from x2l_cluster.kv.wire.buffers import Buffers
from x2l_cluster.kv.wire.cluster import Topology, redirection, slot_of
from x2l_cluster.kv.wire.errors import Refusal

HERE = Address(host="here", port=7000)


@pytest.mark.parametrize(
    ("url", "address", "user", "password", "db", "is_tls"),
    [
        ("redis://", "localhost:6379", "", "", 0, False),
        ("redis://h:1/3", "h:1", "", "", 3, False),
        ("valkey://h?db=4", "h:6379", "", "", 4, False),
        ("redis://:s%40cret@h", "h:6379", "", "s@cret", 0, False),
        ("redis://ada:pw@[::1]:7/0", "::1:7", "ada", "pw", 0, False),
        ("valkeys://h", "h:6379", "", "", 0, True),
        ("unix:///run/a.sock", "/run/a.sock", "", "", 0, False),
        ("unix://ada:pw@/run/a.sock?db=2", "/run/a.sock", "ada", "pw", 2, False),
        ("unix:///run/a.sock?username=ada&password=p%26w", "/run/a.sock", "ada", "p&w", 0, False),
    ],
)
def test_urls_say_what_they_say_to_redis_py(
    url: str, address: str, user: str, password: str, db: int, is_tls: bool
) -> None:
    where, access = parse(url)
    assert (str(where), access.username, access.password, access.db) == (address, user, password, db)
    assert (access.tls is not None) == is_tls
    if password:
        assert password not in repr(access)


def test_tls_checks_certificates_unless_told_not_to() -> None:
    strict = parse("rediss://h")[1].tls
    assert strict is not None
    assert (strict.verify_mode, strict.check_hostname) == (ssl.CERT_REQUIRED, True)
    nameless = parse("rediss://h?ssl_check_hostname=false")[1].tls
    assert nameless is not None
    assert (nameless.verify_mode, nameless.check_hostname) == (ssl.CERT_REQUIRED, False)
    blind = parse("rediss://h?ssl_cert_reqs=none")[1].tls
    assert blind is not None
    assert blind.verify_mode is ssl.CERT_NONE


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:secret@h:x",
        "redis://u:secret@h/x",
        "redis://u:secret@h:99999",
        "unix://",
        "redis://u:sec?secret@h",
        "redis://[u:secret@h",
        "unix://?password=secret@x",
        "rediss://u:secret@h?ssl_ca_certs=/no/such/file",
        "rediss://u:secret@h?ssl_cert_reqs=perhaps",
    ],
)
def test_urls_of_no_use_are_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"cannot be used|names no socket") as refused:
        parse(url)
    assert "secret" not in str(refused.value)


@given(st.binary(max_size=60) | st.text("{}ab", max_size=12).map(str.encode))
def test_slots_are_those_of_every_client(key: bytes) -> None:
    assert slot_of(key) == key_slot(key)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("MOVED 3999 10.0.0.1:6381", (3999, Address(host="10.0.0.1", port=6381))),
        ("ASK 1 ::1:6381", (1, Address(host="::1", port=6381))),
        ("MOVED 5 :6381", (5, Address(host="here", port=6381))),
        ("MOVED 5 ?:6381", (5, Address(host="here", port=6381))),
        ("MOVED 16384 a:1", None),
        ("MOVED -1 a:1", None),
        ("MOVED 1 a:0", None),
        ("MOVED 1 a:99999", None),
        ("MOVED 1 a", None),
        ("MOVED 1", None),
        ("ERR MOVED 1 a:1", None),
    ],
)
def test_redirections_are_read_and_nonsense_is_none(text: str, target: tuple[int, Address] | None) -> None:
    assert redirection(Refusal("here", text), HERE) == target


def test_the_map_is_learnt_and_nonsense_skipped() -> None:
    key, slot = b"{ada/v1}", slot_of(b"{ada/v1}")
    other = Address(host="b", port=2)
    topology = Topology(HERE)
    assert topology.owner(key) == HERE
    assert not topology.is_cluster
    for nonsense in (None, 3, [], [[]], [[0, 1]], [["a", 1, [b"h", 1]]], [[5, 1, [b"h", 1]]], [[0, 99999, [b"h", 1]]]):
        topology.learn(nonsense, HERE)  # type: ignore[arg-type]
    assert not topology.is_cluster
    topology.moved(slot, other)
    assert topology.owner(key) == other
    topology.learn([[0, 16383, [b"", 9, b"id"], [b"replica", 1]], "junk"], HERE)  # type: ignore[list-item]
    assert topology.owner(key) == Address(host="here", port=9)
    assert topology.servers() == [HERE, Address(host="here", port=9)]


def address_of(view: memoryview) -> int:
    return torch.frombuffer(view, dtype=torch.uint8).data_ptr()


def test_a_buffer_is_used_again_when_its_last_view_is_gone_and_not_before() -> None:
    buffers = Buffers()
    first = buffers.lend(100_000)
    first[:] = b"a" * 100_000
    place = address_of(first)
    tensor = torch.frombuffer(first[10:20], dtype=torch.uint8)
    del first
    second = buffers.lend(100_000)
    assert address_of(second) != place
    second[:] = b"b" * 100_000
    assert bytes(tensor.tolist()) == b"a" * 10
    del tensor
    gc.collect()
    third = buffers.lend(70_000)
    assert address_of(third) == place
    assert len(third) == 70_000


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, (64 << 20) + 1])
def test_every_size_is_lent(size: int) -> None:
    view = Buffers().lend(size)
    assert (len(view), view.format, view.readonly) == (size, "B", False)


def test_no_more_is_kept_than_was_allowed() -> None:
    buffers = Buffers(keep_bytes=200_000)
    held = [buffers.lend(60_000 + 10_000) for _ in range(20)]
    places = {address_of(view) for view in held}
    assert len(places) == 20
    del held
    assert sum(map(len, buffers._free.values())) == 1


def test_threads_never_share_a_buffer() -> None:
    buffers = Buffers()

    def work(n: int) -> None:
        for _ in range(200):
            view = buffers.lend(65536)
            view[:8] = view[-8:] = bytes([n]) * 8
            assert view[:8] == view[-8:] == bytes([n]) * 8

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
