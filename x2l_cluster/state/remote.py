"""Manifests in a Redis (7 or later) or Valkey server that persists (``appendonly yes``, ``appendfsync always``).

Compare and swap is a script, so it is atomic on the server. All keys of a tenant carry one hash tag: scripts stay legal
on a cluster, and a tenant's state, which is small, lies together::

    x2l:st:{tenant}:epoch                 counter; survives deletions
    x2l:st:{tenant}:videos                set     videos with a manifest
    x2l:st:{tenant}:heads:video           hash    recipe → head
    x2l:st:{tenant}:log:video:recipe      list    records
    x2l:st:{tenant}:content               hash    content digest → video
    x2l:st:{tenant}:bound:video           set     content digests
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from x2l_cluster.kv.connect import connect, errors_as_store, shown
from x2l_cluster.state.manifests import Manifests
from x2l_cluster.state.shelf import Slot, Snapshot

_READ = """
-- KEYS: heads, log; ARGV: recipe, cursor
local head = redis.call('HGET', KEYS[1], ARGV[1])
if not head then return false end
return {head, redis.call('LLEN', KEYS[2]), redis.call('LRANGE', KEYS[2], ARGV[2], -1)}
"""

_SWAP = """
-- KEYS: heads, log, videos; ARGV: video, recipe, '1' if a head is expected, that head, new head, records
local head = redis.call('HGET', KEYS[1], ARGV[2])
if (head or '') ~= ARGV[4] or (head and '1' or '0') ~= ARGV[3] then return -1 end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[5])
redis.call('SADD', KEYS[3], ARGV[1])
for i = 6, #ARGV do redis.call('RPUSH', KEYS[2], ARGV[i]) end
return redis.call('LLEN', KEYS[2])
"""

_DROP = """
-- KEYS: heads, videos, content, bound; ARGV: video, log prefix, a recipe or ''. The logs named here share the hash tag
-- of KEYS.
if ARGV[3] ~= '' then
  if redis.call('HEXISTS', KEYS[1], ARGV[3]) == 0 then return 0 end
  if redis.call('HLEN', KEYS[1]) > 1 then
    redis.call('UNLINK', ARGV[2] .. ARGV[3])
    return redis.call('HDEL', KEYS[1], ARGV[3])
  end
end
local gone = redis.call('SREM', KEYS[2], ARGV[1])
for _, recipe in ipairs(redis.call('HKEYS', KEYS[1])) do redis.call('UNLINK', ARGV[2] .. recipe) end
for _, digest in ipairs(redis.call('SMEMBERS', KEYS[4])) do gone = gone + redis.call('HDEL', KEYS[3], digest) end
redis.call('UNLINK', KEYS[1], KEYS[4])
return gone
"""

_BIND = """
-- KEYS: content, bound; ARGV: digest, video
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 1 then redis.call('SADD', KEYS[2], ARGV[1]) end
return redis.call('HGET', KEYS[1], ARGV[1])
"""


class RemoteState(Manifests):
    """Manifests in a server. ``durable`` is what the operator says of it; arguments as of :class:`RemoteShelf`."""

    def __init__(self, url: str, *, durable: bool = False, timeout_s: float = 5.0) -> None:
        super().__init__(RemoteShelf(url, durable=durable, timeout_s=timeout_s))


class RemoteShelf:
    """Heads and logs in a server.

    Args:
        url: ``redis://``, ``valkey://``, their TLS forms, or ``unix:///path``.
        durable: whether the server acknowledges a write only once it is on its disk.
        timeout_s: how long one command may take, connecting included.
    """

    def __init__(self, url: str, *, durable: bool, timeout_s: float) -> None:
        self.durable = durable
        self._where = shown(url)
        self._client: Any = connect(url, timeout_s=timeout_s)
        self._read, self._swap, self._drop, self._bind = map(self._client.register_script, (_READ, _SWAP, _DROP, _BIND))

    def next_epoch(self, tenant: str) -> int:
        with errors_as_store(self._where):
            return int(self._client.incr(_key(tenant, "epoch")))

    def epoch(self, tenant: str) -> int:
        with errors_as_store(self._where):
            return int(self._client.get(_key(tenant, "epoch")) or 0)

    def tenants(self) -> list[str]:
        with errors_as_store(self._where):
            found = {key.decode() for key in self._client.scan_iter(match=_key("*", "epoch"), count=1000)}
        return [key[key.index("{") + 1 : key.rindex("}")] for key in found]

    def read(self, slot: Slot, after: int = 0) -> Snapshot | None:
        with errors_as_store(self._where):
            found = self._read(keys=[_heads(slot), _log(slot)], args=[slot.recipe, after])
        if found is None:
            return None
        head, length, records = found
        return Snapshot(head, records, length)

    def swap(self, slot: Slot, expected: bytes | None, head: bytes, records: Sequence[bytes]) -> int | None:
        keys = [_heads(slot), _log(slot), _key(slot.tenant, "videos")]
        args = [slot.video, slot.recipe, int(expected is not None), expected or b"", head, *records]
        with errors_as_store(self._where):
            cursor = int(self._swap(keys=keys, args=args))
        return None if cursor < 0 else cursor

    def heads(self, tenant: str, video: str | None = None) -> list[bytes]:
        with errors_as_store(self._where), self._client.pipeline(transaction=False) as batch:
            videos = [video] if video else [v.decode() for v in self._client.smembers(_key(tenant, "videos"))]
            for name in videos:
                batch.hvals(_key(tenant, "heads", name))
            return [head for heads in batch.execute() for head in heads]

    def drop(self, tenant: str, video: str, recipe: str | None = None) -> bool:
        names = (("heads", video), ("videos",), ("content",), ("bound", video))
        with errors_as_store(self._where):
            keys = [_key(tenant, *name) for name in names]
            return bool(self._drop(keys=keys, args=[video, _key(tenant, "log", video, ""), recipe or ""]))

    def bind(self, tenant: str, content: str, video: str) -> str:
        with errors_as_store(self._where):
            bound: bytes = self._bind(
                keys=[_key(tenant, "content"), _key(tenant, "bound", video)], args=[content, video]
            )
        return bound.decode()

    def find(self, tenant: str, content: str) -> str | None:
        with errors_as_store(self._where):
            bound: bytes | None = self._client.hget(_key(tenant, "content"), content)
        return bound.decode() if bound is not None else None

    def close(self) -> None:
        self._client.close()


def _key(tenant: str, *parts: str) -> str:
    return ":".join((f"x2l:st:{{{tenant}}}", *parts))


def _heads(slot: Slot) -> str:
    return _key(slot.tenant, "heads", slot.video)


def _log(slot: Slot) -> str:
    return _key(slot.tenant, "log", slot.video, slot.recipe)
