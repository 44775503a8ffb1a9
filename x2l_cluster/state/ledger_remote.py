"""Records in a Redis (7 or later) or Valkey server that persists (``appendonly yes``, ``appendfsync always``).

Every put is one script, so it is atomic on the server. All keys of a ledger carry one hash tag: scripts stay legal on a
cluster, and the ledger, which is small, lies together::

    x2l:{space}:rec:NAME            hash     d: the record; m: where it stands, for the next put to undo
    x2l:{space}:log:NAME            stream   events, under their numbers
    x2l:{space}:ix:INDEX/GROUP      zset     who stands in a group
    x2l:{space}:groups:INDEX        set      groups that are not empty
    x2l:{space}:n:COUNTER           counter
    x2l:{space}:told                channel  topics, as they are put under
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Event as Signal
from threading import Lock, Thread
from typing import Any, Final

from x2l_cluster.errors import StoreUnavailable
from x2l_cluster.kv.connect import connect, errors_as_store, shown
from x2l_cluster.state.ledger import Entry, Event, Group, GroupFull, Room
from x2l_cluster.state.watchers import Watchers

_PUT: Final = """
-- KEYS: record, log, channel; ARGV: key prefix, name, (flag, value) of expected and of new, (number, data, keep) of an
-- event and (index, group, most) of a room ('' for none), how many marks, these as (index, group, place), topics.
-- The groups named here share the hash tag of KEYS.
local prefix, name = ARGV[1], ARGV[2]
local current = redis.call('HGET', KEYS[1], 'd')
local function is(flag, value) return (current and '1' or '0') == flag and (current or '') == value end
if is(ARGV[5], ARGV[6]) then return 1 end
if not is(ARGV[3], ARGV[4]) then return 0 end
local function group(index, name) return prefix .. 'ix:' .. index .. '/' .. name end
local marks, at, count = {}, 14, tonumber(ARGV[13])
for i = 1, count do
  marks[i] = {ARGV[at], ARGV[at + 1], ARGV[at + 2]}
  at = at + 3
end
if ARGV[10] ~= '' then
  local key, size = group(ARGV[10], ARGV[11]), 0
  size = redis.call('ZCARD', key) - (redis.call('ZSCORE', key, name) and 1 or 0)
  for _, mark in ipairs(marks) do
    if mark[1] == ARGV[10] and mark[2] == ARGV[11] then size = size + 1 end
  end
  if size > tonumber(ARGV[12]) then return -1 end
end
if current then
  for _, mark in ipairs(cmsgpack.unpack(redis.call('HGET', KEYS[1], 'm'))) do
    local key = group(mark[1], mark[2])
    redis.call('ZREM', key, name)
    if redis.call('EXISTS', key) == 0 then redis.call('SREM', prefix .. 'groups:' .. mark[1], mark[2]) end
  end
end
if ARGV[5] == '1' then
  redis.call('HSET', KEYS[1], 'd', ARGV[6], 'm', cmsgpack.pack(marks))
  for _, mark in ipairs(marks) do
    redis.call('ZADD', group(mark[1], mark[2]), mark[3], name)
    redis.call('SADD', prefix .. 'groups:' .. mark[1], mark[2])
  end
else
  redis.call('UNLINK', KEYS[1], KEYS[2])
end
if ARGV[7] ~= '' then redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[9], ARGV[7] .. '-0', 'd', ARGV[8]) end
for i = at, #ARGV do redis.call('PUBLISH', KEYS[3], ARGV[i]) end
return 1
"""

_GROUPS: Final = """
-- KEYS: sets of groups; ARGV: key prefix, indexes
local found = {}
for i, key in ipairs(KEYS) do
  local groups = {}
  for _, name in ipairs(redis.call('SMEMBERS', key)) do
    local zset = ARGV[1] .. 'ix:' .. ARGV[i + 1] .. '/' .. name
    local first = redis.call('ZRANGE', zset, 0, 0, 'WITHSCORES')
    local last = redis.call('ZRANGE', zset, -1, -1, 'WITHSCORES')
    groups[#groups + 1] = {name, redis.call('ZCARD', zset), first[2], last[2]}
  end
  found[i] = groups
end
return found
"""

_LISTEN_S: Final = 0.5
"""How long the listener waits for a message before it sees whether it should end, after a lost connection, and others
for it to be ready."""


class RemoteLedger:
    """Records in a server.

    Args:
        url: ``redis://``, ``valkey://``, their TLS forms, or ``unix:///path``.
        space: part of every key; ledgers of other spaces are apart.
        durable: whether the server acknowledges a write only once it is on its disk.
        timeout_s: how long one command may take, connecting included.
    """

    def __init__(self, url: str, space: str, *, durable: bool = False, timeout_s: float = 5.0) -> None:
        self.durable = durable
        self._where = shown(url)
        self._prefix = f"x2l:{{{space}}}:"
        self._client: Any = connect(url, timeout_s=timeout_s)
        self._put, self._groups = map(self._client.register_script, (_PUT, _GROUPS))
        self._watchers = Watchers()
        self._lock = Lock()
        self._closed = Signal()
        self._listening = Signal()
        self._listener: Thread | None = None

    def count(self, counter: str) -> int:
        with errors_as_store(self._where):
            return int(self._client.incr(f"{self._prefix}n:{counter}"))

    def get(self, name: str) -> bytes | None:
        with errors_as_store(self._where):
            found: bytes | None = self._client.hget(self._record(name), "d")
            return found

    def get_many(self, names: Sequence[str]) -> list[bytes | None]:
        with errors_as_store(self._where), self._client.pipeline(transaction=False) as batch:
            for name in names:
                batch.hget(self._record(name), "d")
            found: list[bytes | None] = batch.execute()
            return found

    def put(
        self,
        name: str,
        expected: bytes | None,
        entry: Entry | None,
        *,
        event: Event | None = None,
        room: Room | None = None,
        topics: Sequence[str] = (),
    ) -> bool:
        marks = entry.marks if entry else {}
        args = [
            *(self._prefix, name, *_flagged(expected), *_flagged(entry.data if entry else None)),
            *(event or ("", "", "")),
            *((*room.where, room.most) if room else ("", "", "")),
            *(len(marks), *(part for where, place in marks.items() for part in (*where, repr(float(place))))),
            *topics,
        ]
        with errors_as_store(self._where):
            done = self._put(keys=[self._record(name), self._log(name), self._channel], args=args)
        if done < 0:
            raise GroupFull
        return bool(done)

    def groups(self, *indexes: str) -> list[dict[str, Group]]:
        with errors_as_store(self._where):
            keys = [f"{self._prefix}groups:{index}" for index in indexes]
            found = self._groups(keys=keys, args=[self._prefix, *indexes])
        return [
            {group.decode(): Group(size, float(first), float(last)) for group, size, first, last in groups}
            for groups in found
        ]

    def names(
        self, index: str, group: str, *, limit: int, upto: float | None = None, newest: bool = False
    ) -> list[str]:
        key, end = f"{self._prefix}ix:{index}/{group}", "+inf" if upto is None else repr(float(upto))
        with errors_as_store(self._where):
            if newest:
                found = self._client.zrevrangebyscore(key, end, "-inf", start=0, num=limit)
            else:
                found = self._client.zrangebyscore(key, "-inf", end, start=0, num=limit)
        return [name.decode() for name in found]

    def log(self, name: str, after: int) -> list[bytes]:
        with errors_as_store(self._where):
            return [fields[b"d"] for _, fields in self._client.xrange(self._log(name), min=f"({after}-0")]

    @contextmanager
    def watching(self, topic: str, notify: Callable[[], None]) -> Iterator[None]:
        with self._watchers.watching(topic, notify):
            with self._lock:
                if self._listener is None and not self._closed.is_set():
                    self._listener = Thread(target=self._listen, name="x2l-ledger", daemon=True)
                    self._listener.start()
            self._listening.wait(_LISTEN_S)  # no longer: whoever watches looks now and then all the same
            yield

    def close(self) -> None:
        with self._lock:
            self._closed.set()
            self._listening.set()
            listener = self._listener
        if listener is not None:
            with suppress(StoreUnavailable), errors_as_store(self._where):
                self._client.publish(self._channel, "")  # so that it sees at once
            listener.join()
        self._client.close()
        self._watchers.tell_all()

    # --- machinery --------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """One connection hears for all watchers of this process."""
        while not self._closed.is_set():
            with suppress(StoreUnavailable), errors_as_store(self._where), self._client.pubsub() as heard:
                heard.subscribe(self._channel)
                while not self._closed.is_set():
                    message = heard.get_message(timeout=_LISTEN_S)
                    if message and message["type"] == "message":
                        self._watchers.tell(message["data"].decode())
                    elif message:  # subscribed, perhaps again: what was told meanwhile is lost
                        self._listening.set()
                        self._watchers.tell_all()
            self._closed.wait(_LISTEN_S)

    @property
    def _channel(self) -> str:
        return f"{self._prefix}told"

    def _record(self, name: str) -> str:
        return f"{self._prefix}rec:{name}"

    def _log(self, name: str) -> str:
        return f"{self._prefix}log:{name}"


def _flagged(value: bytes | None) -> tuple[int, bytes]:
    return int(value is not None), value or b""
