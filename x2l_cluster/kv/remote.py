"""Blobs in a Redis (7 or later) or Valkey server, or a cluster of them.

A block is one string; beside it every video has one hash of its blocks and their sizes, so deleting a video scans
nothing. A blob and its entry in the hash are written in one transaction, in one sending: a writer that dies on the way,
or a deletion that comes in between, leaves both or neither. All keys of a video carry the same hash tag, which keeps
transactions and scripts legal on a cluster::

    x2l:kv:{tenant/video}                      hash   recipe/epoch/kind/chunk/stripe → bytes
    x2l:kv:{tenant/video}/recipe/…/stripe      string blob
    x2l:kv:evictor                             string who evicts just now

How long ago a blob was read is what the server itself knows of it (``OBJECT IDLETIME``), so reading costs nothing more.
With a time to live, reading a blob renews that, and what a service that is gone for good left behind goes by itself.

Blobs travel over :class:`~x2l_cluster.kv.wire.WireClient`; everything small goes by redis-py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

from cachetools import TTLCache

from x2l_cluster.errors import BlockMissing, InvalidInput, StoreUnavailable
from x2l_cluster.kv.connect import connect, errors_as_store, shown
from x2l_cluster.kv.evict import Entry
from x2l_cluster.kv.store import ANY, Buffer, Priority, SingleStore, Want, missing_message
from x2l_cluster.kv.wire import WireClient
from x2l_cluster.kv.wire.resp import MAX_VALUE_BYTES
from x2l_cluster.metrics import KV_EVICTIONS, kind_of
from x2l_cluster.types import BlockKey, Tier, check_name

_DELETE = """
-- KEYS: the hash of the video, then blobs; ARGV: the field of each blob. Returns the bytes freed.
local freed = 0
for i, field in ipairs(ARGV) do
  freed = freed + (tonumber(redis.call('HGET', KEYS[1], field)) or 0)
  redis.call('HDEL', KEYS[1], field)
  redis.call('UNLINK', KEYS[i + 1])
end
return freed
"""
_FORGET = """
-- KEYS: the hash of the video, then blobs; ARGV: the field of each. Drops the fields of blobs that are gone.
local gone = {}
for i, field in ipairs(ARGV) do
  if redis.call('EXISTS', KEYS[i + 1]) == 0 and redis.call('HDEL', KEYS[1], field) == 1 then gone[#gone + 1] = field end
end
return gone
"""
# A full server refuses to set even this, unless told that it helps.
_TURN = """#!lua flags=allow-oom
-- KEYS: evictor; ARGV: token, milliseconds. Whether the turn is the token's, which keeps it for so long.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_LEAVE = """
-- KEYS: evictor; ARGV: token
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 0
"""
_EVICTOR = "x2l:kv:evictor"
_TURN_S = 5.0
"""How long a dead evictor holds up the others."""
_AGAIN_S = 0.02
_BATCH = 500


class RemoteKV(SingleStore):
    """A server's memory.

    Args:
        url: ``redis://``, ``valkey://``, their TLS forms, or ``unix:///path``; with ``?cluster=true`` any server of a
            cluster.
        durable: whether the operator runs the server with persistence that survives its restart.
        timeout_s: how long a small command may take, connecting included, and a blob on top of ``per_mib_s``.
        per_mib_s: what each MiB of a blob adds to that.
        connections, cap_bytes: blobs in flight at once, in number and in bytes.
        ttl_s: blobs nobody has read or written for so long go; None keeps them.
    """

    tier = Tier.REMOTE

    def __init__(
        self,
        url: str,
        *,
        durable: bool = False,
        timeout_s: float = 5.0,
        per_mib_s: float = 0.1,
        connections: int = 4,
        cap_bytes: int = 64 << 20,
        ttl_s: int | None = None,
    ) -> None:
        if ttl_s is not None and ttl_s < 1:
            raise InvalidInput(f"blobs live for at least a second, got ttl_s={ttl_s}")
        self.durable = durable
        self._ttl_s = ttl_s
        self._renewed: TTLCache[str, bool] = TTLCache(10_000, ttl=(ttl_s or 1) / 4)
        self._lock = Lock()
        self._where, self._timeout_s = shown(url), timeout_s
        self.wire = WireClient(url, connections=connections, cap_bytes=cap_bytes, base_s=timeout_s, per_mib_s=per_mib_s)
        """Where blobs travel; ask it for its counts and the state of its breakers."""
        self._client: Any = connect(url, timeout_s=timeout_s)
        self._delete, self._forget, self._turn, self._leave = map(
            self._client.register_script, (_DELETE, _FORGET, _TURN, _LEAVE)
        )

    def put(self, key: BlockKey, blob: Buffer) -> None:
        name, size = _blob(key), memoryview(blob).nbytes
        if size > MAX_VALUE_BYTES:
            raise InvalidInput(f"block {key} has {size} bytes, a server takes {MAX_VALUE_BYTES}: use smaller chunks")
        place = _video(key.tenant, key.video)
        index = ("HSET", place, _field(key), size)
        if self._ttl_s is None:
            self.wire.write(name, ("SET", name, blob), index)
        else:
            life = ("EXPIRE", place, 2 * self._ttl_s)
            self.wire.write(name, ("SET", name, blob, "EX", self._ttl_s), index, life)

    def get(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> memoryview:
        priority = Priority.of(key.kind) if want.priority is None else want.priority
        blob = self.wire.get(
            _blob(key),
            into=into,
            size=want.size_bytes,
            priority=priority,
            base_s=None if want.within_s is None else min(want.within_s, self._timeout_s),
            renew_s=self._ttl_s,
        )
        if blob is None:
            raise BlockMissing(missing_message(key, self._where))
        if self._ttl_s is not None:
            self._renew(_video(key.tenant, key.video), 2 * self._ttl_s)
        return blob.toreadonly()

    def delete(self, keys: Iterable[BlockKey]) -> int:
        videos: dict[str, list[str]] = defaultdict(list)
        for key in keys:
            videos[_video(key.tenant, key.video)].append(_field(key))
        return sum(self._drop(video, fields) for video, fields in videos.items())

    def delete_video(self, tenant: str, video: str) -> int:
        place = _video(tenant, video)
        freed = 0
        while fields := self._fields(place):  # again for what somebody wrote meanwhile
            freed += self._drop(place, fields)
        return freed

    def keys(self, tenant: str, video: str) -> Iterator[BlockKey]:
        for field in self._fields(_video(tenant, video)):
            yield _key(tenant, video, field)

    def videos(self) -> Iterator[tuple[str, str]]:
        with errors_as_store(self._where):
            seen = {_owner(place.decode()) for place in self._videos()}  # a scan may tell of one twice
        return iter(seen)

    def held_bytes(self, tenant: str | None = None) -> int:
        with errors_as_store(self._where):
            return sum(int(size) for video in self._videos(tenant) for size in self._client.hvals(video))

    def close(self) -> None:
        self.wire.close()
        self._client.close()

    # --- for an evictor ---------------------------------------------------------------------------------------------

    def usage_bytes(self) -> int:
        """The memory of the server with all it holds, without what passes through; of a cluster that of all."""
        return sum(map(_held_by, self._memory()))

    def capacity_bytes(self) -> int | None:
        """The server's ``maxmemory``, of a cluster that of all; None when one has none."""
        bounds = [int(memory["maxmemory"]) for memory in self._memory()]
        return sum(bounds) if all(bounds) else None

    def entries(self) -> Iterable[Entry]:
        """Blobs; in passing, index entries of blobs whose time to live was over are dropped."""
        with errors_as_store(self._where):
            for video in self._videos():
                place = video.decode()
                tenant, name = _owner(place)
                sizes = {field.decode(): int(size) for field, size in self._client.hgetall(place).items()}
                for start in range(0, len(sizes), _BATCH):
                    part = list(sizes)[start : start + _BATCH]
                    gone = []
                    for field, idle_s in zip(part, self._idle_s([f"{place}/{field}" for field in part]), strict=True):
                        if idle_s is None:
                            gone.append(field)
                        else:
                            yield Entry(key=_key(tenant, name, field), size_bytes=sizes[field], heat=-idle_s)
                    self._forget_gone(place, gone)

    @contextmanager
    def turn(self) -> Iterator[Callable[[], bool] | None]:
        """A key with an owner and an end, so that a dead one holds nobody up for long; see :class:`.evictor.Evictable`.

        Eviction by two at a time does no harm but that more goes than must.
        """
        token, until = uuid4().hex, monotonic() + 2 * _TURN_S

        def mine() -> bool:
            with errors_as_store(self._where):
                return bool(self._turn(keys=[_EVICTOR], args=[token, int(_TURN_S * 1000)]))

        while not (got := mine()) and monotonic() < until:
            sleep(_AGAIN_S)
        try:
            yield mine if got else None
        finally:
            with suppress(StoreUnavailable), errors_as_store(self._where):
                self._leave(keys=[_EVICTOR], args=[token])

    # --- small commands ---------------------------------------------------------------------------------------------

    def _videos(self, tenant: str | None = None) -> Iterator[bytes]:
        owner = "*" if tenant is None else check_name("tenant", tenant)
        found: Iterator[bytes] = self._client.scan_iter(match=f"x2l:kv:{{{owner}/*}}", _type="hash", count=1000)
        return found

    def _memory(self) -> list[dict[str, Any]]:
        """What every server says of its memory."""
        with errors_as_store(self._where):
            if not hasattr(self._client, "PRIMARIES"):
                return [self._client.info("memory")]
            return list(self._client.info("memory", target_nodes=self._client.PRIMARIES).values())

    def _idle_s(self, names: list[str]) -> list[float | None]:
        """Seconds since each was read; 0 where the server does not count them (its policy is LFU); None: it is gone."""
        with self._client.pipeline(transaction=False) as batch:
            for name in names:
                batch.object("IDLETIME", name)
            return [0.0 if isinstance(idle, Exception) else idle for idle in batch.execute(raise_on_error=False)]

    def _forget_gone(self, place: str, fields: list[str]) -> None:
        if not fields:
            return
        for field in self._forget(keys=[place, *(f"{place}/{field}" for field in fields)], args=fields):
            KV_EVICTIONS.labels(self.tier.value, kind_of(field.decode().split("/")[2]), "ttl").inc()

    def _renew(self, place: str, life_s: int) -> None:
        """The index of a video outlives its blobs; told to the server once in a while, and never anybody's error."""
        with self._lock:
            if place in self._renewed:
                return
            self._renewed[place] = True
        with suppress(StoreUnavailable), errors_as_store(self._where):
            self._client.expire(place, life_s)

    def _fields(self, place: str) -> list[str]:
        with errors_as_store(self._where):
            return [field.decode() for field in self._client.hkeys(place)]

    def _drop(self, place: str, fields: list[str]) -> int:
        freed = 0
        with errors_as_store(self._where):
            for start in range(0, len(fields), _BATCH):
                part = fields[start : start + _BATCH]
                freed += int(self._delete(keys=[place, *(f"{place}/{field}" for field in part)], args=part))
        return freed


def _held_by(memory: dict[str, Any]) -> int:
    return int(memory["used_memory"]) - int(memory["mem_clients_normal"])


def _video(tenant: str, video: str) -> str:
    return f"x2l:kv:{{{check_name('tenant', tenant)}/{check_name('video', video)}}}"


def _owner(place: str) -> tuple[str, str]:
    """Tenant and video of a hash."""
    tenant, video = place[place.index("{") + 1 : -1].split("/")
    return tenant, video


def _key(tenant: str, video: str, field: str) -> BlockKey:
    recipe, epoch, kind, chunk, stripe = field.split("/")
    return BlockKey(
        tenant=tenant, video=video, recipe=recipe, epoch=int(epoch), kind=kind, chunk=int(chunk), stripe=int(stripe)
    )


def _field(key: BlockKey) -> str:
    return "/".join(key.parts[2:])


def _blob(key: BlockKey) -> str:
    return f"{_video(key.tenant, key.video)}/{_field(key)}"
