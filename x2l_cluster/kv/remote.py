"""Blobs in a Redis (7 or later) or Valkey server, or a cluster of them.

A block is one string; beside it every video has one hash of its blocks and their sizes, so deleting a video scans
nothing. A blob and its entry in the hash are written in one transaction, in one sending: a writer that dies on the way,
or a deletion that comes in between, leaves both or neither. All keys of a video carry the same hash tag, which keeps
transactions and scripts legal on a cluster::

    x2l:kv:{tenant/video}                      hash   recipe/epoch/kind/chunk/stripe → bytes
    x2l:kv:{tenant/video}/recipe/…/stripe      string blob

Blobs travel over :class:`~x2l_cluster.kv.wire.WireClient`; everything small goes by redis-py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from x2l_cluster.errors import BlockMissing, InvalidInput
from x2l_cluster.kv.connect import connect, errors_as_store, shown
from x2l_cluster.kv.store import ANY, Buffer, Priority, SingleStore, Want, missing_message
from x2l_cluster.kv.wire import WireClient
from x2l_cluster.kv.wire.resp import MAX_VALUE_BYTES
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
    ) -> None:
        self.durable = durable
        self._where = shown(url)
        self.wire = WireClient(url, connections=connections, cap_bytes=cap_bytes, base_s=timeout_s, per_mib_s=per_mib_s)
        """Where blobs travel; ask it for its counts and the state of its breakers."""
        self._client: Any = connect(url, timeout_s=timeout_s)
        self._delete: Any = self._client.register_script(_DELETE)

    def put(self, key: BlockKey, blob: Buffer) -> None:
        name, size = _blob(key), memoryview(blob).nbytes
        if size > MAX_VALUE_BYTES:
            raise InvalidInput(f"block {key} has {size} bytes, a server takes {MAX_VALUE_BYTES}: use smaller chunks")
        self.wire.write(name, ("SET", name, blob), ("HSET", _video(key.tenant, key.video), _field(key), size))

    def get(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> memoryview:
        priority = Priority.of(key.kind) if want.priority is None else want.priority
        blob = self.wire.get(_blob(key), into=into, size=want.size_bytes, priority=priority, base_s=want.within_s)
        if blob is None:
            raise BlockMissing(missing_message(key, self._where))
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
            recipe, epoch, kind, chunk, stripe = field.split("/")
            yield BlockKey(
                tenant=tenant,
                video=video,
                recipe=recipe,
                epoch=int(epoch),
                kind=kind,
                chunk=int(chunk),
                stripe=int(stripe),
            )

    def held_bytes(self, tenant: str | None = None) -> int:
        owner = "*" if tenant is None else check_name("tenant", tenant)
        with errors_as_store(self._where):
            videos = self._client.scan_iter(match=f"x2l:kv:{{{owner}/*}}", _type="hash", count=1000)
            return sum(int(size) for video in videos for size in self._client.hvals(video))

    def close(self) -> None:
        self.wire.close()
        self._client.close()

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


def _video(tenant: str, video: str) -> str:
    return f"x2l:kv:{{{check_name('tenant', tenant)}/{check_name('video', video)}}}"


def _field(key: BlockKey) -> str:
    return "/".join(key.parts[2:])


def _blob(key: BlockKey) -> str:
    return f"{_video(key.tenant, key.video)}/{_field(key)}"
