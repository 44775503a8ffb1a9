"""A real server for tests: ``valkey_url`` is one a session (and test worker), from the wheel, killed at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from x2l_cluster.kv.embedded import EmbeddedValkey


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """URL of a real, empty Valkey. Shared by the session: keep to a tenant or a database of your own."""
    with EmbeddedValkey(maxmemory_bytes=256 << 20) as server:
        yield server.url


@pytest.fixture
def empty_valkey(valkey_url: str) -> str:
    """URL of a database of that server that is empty at the start of the test."""
    import redis

    url = f"{valkey_url}?db=9"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url
