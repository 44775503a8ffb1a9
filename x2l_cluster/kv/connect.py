"""One way to reach a Redis or Valkey server, and one translation of its troubles. Imports redis-py when used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from x2l_cluster.errors import InvalidInput, StoreFull, StoreUnavailable
from x2l_cluster.kv.wire.address import shown

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["SCHEMES", "connect", "errors_as_store", "shown"]

SCHEMES = ("redis", "rediss", "valkey", "valkeys", "unix")


def connect(url: str, *, timeout_s: float) -> Redis:
    """A client for ``redis://``, ``valkey://``, their TLS forms, or ``unix:///path/to/socket``.

    Connects on first use; to a cluster (``?cluster=true``) at once, for its map. A command that finds its connection
    closed is tried once more (servers restart), so callers send only what may safely arrive twice.

    Raises:
        InvalidInput: the URL cannot be used.
        StoreUnavailable: redis-py is missing, or no server of the cluster answers.
    """
    try:
        import redis
        from redis import exceptions
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise StoreUnavailable("the remote tier needs redis-py: pip install redis") from error
    address, is_cluster = _without_cluster(url.replace("valkey", "redis", 1) if url.startswith("valkey") else url)
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 1, supported_errors=(exceptions.ConnectionError,)),
    }
    try:
        if not is_cluster:
            return redis.Redis.from_url(address, **options)
        with errors_as_store(shown(url)):
            cluster: Any = redis.RedisCluster.from_url(address, require_full_coverage=False, **options)
            return cluster  # the same commands
    except ValueError as error:
        raise InvalidInput(f"the store URL {shown(url)} cannot be used: {error}") from error


def _without_cluster(url: str) -> tuple[str, bool]:
    """The URL without its ``cluster=…``, which is not redis-py's, and what that says."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    rest = [(name, value) for name, value in query if name != "cluster"]
    if len(rest) == len(query):
        return url, False
    is_cluster = dict(query)["cluster"].lower() in ("true", "yes", "1")
    return urlunsplit(parts._replace(query=urlencode(rest))), is_cluster


@contextmanager
def errors_as_store(where: str) -> Iterator[None]:
    """Errors of the server and the wire become StoreFull or StoreUnavailable."""
    from redis import exceptions

    try:
        yield
    except exceptions.OutOfMemoryError as error:
        raise StoreFull(f"the server at {where} is full: delete videos or raise its maxmemory") from error
    except (exceptions.RedisError, exceptions.RedisClusterException) as error:
        if "OOM" in str(error):  # inside a transaction it comes wrapped
            raise StoreFull(f"the server at {where} is full: delete videos or raise its maxmemory") from error
        raise StoreUnavailable(f"the server at {where} does not do its work: {error}") from error
