"""One way to reach a Redis or Valkey server, and one translation of its troubles. Imports redis-py when used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from x2l_cluster.errors import InvalidInput, StoreFull, StoreUnavailable

if TYPE_CHECKING:
    from redis import Redis

SCHEMES = ("redis", "rediss", "valkey", "valkeys", "unix")


def connect(url: str, *, timeout_s: float) -> Redis:
    """A client for ``redis://``, ``valkey://``, their TLS forms, or ``unix:///path/to/socket``.

    Connects on first use. A command that finds its connection closed is tried once more (servers restart), so callers
    send only what may safely arrive twice.
    """
    try:
        import redis
        from redis import exceptions
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise StoreUnavailable("the remote tier needs redis-py: pip install redis") from error
    try:
        return redis.Redis.from_url(
            url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1, supported_errors=(exceptions.ConnectionError,)),
        )
    except ValueError as error:
        raise InvalidInput(f"the store URL {shown(url)} cannot be used: {error}") from error


def shown(url: str) -> str:
    """The URL without credentials, for messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextmanager
def errors_as_store(where: str) -> Iterator[None]:
    """Errors of the server and the wire become StoreFull or StoreUnavailable."""
    from redis import exceptions

    try:
        yield
    except exceptions.OutOfMemoryError as error:
        raise StoreFull(f"the server at {where} is full: delete videos or raise its maxmemory") from error
    except exceptions.RedisError as error:
        if "OOM" in str(error):  # inside a transaction it comes wrapped
            raise StoreFull(f"the server at {where} is full: delete videos or raise its maxmemory") from error
        raise StoreUnavailable(f"the server at {where} does not do its work: {error}") from error
