"""The servers behind a URL, one or a cluster: brings work to whoever holds a key, wherever that leads."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from time import sleep
from typing import Final, TypeVar

from x2l_cluster.errors import StoreUnavailable, X2LError
from x2l_cluster.kv.wire.address import Access, Address
from x2l_cluster.kv.wire.breaker import Breaker, BreakerState
from x2l_cluster.kv.wire.cluster import Topology, redirection
from x2l_cluster.kv.wire.connection import Connection
from x2l_cluster.kv.wire.deadline import Deadline
from x2l_cluster.kv.wire.errors import Broken, Closed, Late, Refusal
from x2l_cluster.kv.wire.node import Node

T = TypeVar("T")
Work = Callable[[Connection], T]
"""What is done on one connection. It takes every reply it asked for before it raises a Refusal."""

_HOPS: Final = 6
_MAX_NODES: Final = 2048
_MAP_EVERY_S: Final = 1.0
_AGAIN_S: Final = 0.02
_NOT_READY: Final = {"LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY"}
"""Errors of a server that runs and yet cannot serve; they count as failures."""


class Servers:
    """Follows redirections, learns the map of slots on the way, and tells each server's breaker how it went.

    Work that finds its connection cut is done once more on a new one.
    """

    def __init__(self, seed: Address, access: Access, clock: Callable[[], float]) -> None:
        self._access, self._clock = access, clock
        self._topology = Topology(seed)
        self._nodes: dict[Address, Node] = {}
        self._lock = Lock()
        self._mapping = Lock()
        self._mapped_at = -_MAP_EVERY_S
        self._is_closed = False
        self.reconnected = 0
        self.redirected = 0

    @property
    def dialled(self) -> int:
        return sum(node.dialled for node in list(self._nodes.values()))

    @property
    def breakers(self) -> dict[str, BreakerState]:
        return {str(node.address): node.breaker.state for node in list(self._nodes.values())}

    def run(self, key: bytes, work: Work[T], deadline: Deadline, *, wait_for_slot: bool = False) -> T:
        """Does work that concerns ``key``.

        Args:
            wait_for_slot: wait, rather than follow ASK, while the slot moves to another server. ASKING speaks for one
                command only, so a transaction cannot follow.

        Raises:
            Refusal: the server's error, unless it was a redirection.
            StoreUnavailable: there is no server to do it in time.
        """
        address, asking, hops = self._topology.owner(key), False, 0
        while hops < _HOPS:
            try:
                return self._ask(address, work, deadline, asking=asking)
            except Refusal as refusal:
                target = redirection(refusal, address)
                if refusal.word == "TRYAGAIN" or (wait_for_slot and refusal.word == "ASK"):
                    sleep(min(_AGAIN_S, deadline.left_s()))
                    address, asking = self._topology.owner(key), False
                    continue
                if target is None:
                    raise
                slot, address = target
                asking = refusal.word == "ASK"
                if not asking:
                    self._topology.moved(slot, address)
                    self._map([address], deadline)
                self.redirected += 1
            except Broken:
                if not self._topology.is_cluster:
                    raise
                self._map([server for server in self._topology.servers() if server != address], deadline)
                if (owner := self._topology.owner(key)) == address:
                    raise
                address, asking = owner, False
            hops += 1
        raise StoreUnavailable(f"the servers send their clients in a circle, at last to {address}: mend the cluster")

    def close(self) -> None:
        """Closes idle connections now and busy ones when they are done."""
        with self._lock:
            self._is_closed = True
            nodes = list(self._nodes.values())
        for node in nodes:
            node.close()

    def _map(self, servers: list[Address], deadline: Deadline) -> None:
        """Asks the first of ``servers`` that answers for the map of slots; one thread at a time, once a while."""
        if not self._mapping.acquire(blocking=False):
            return
        try:
            if self._clock() - self._mapped_at < _MAP_EVERY_S:
                return
            self._mapped_at = self._clock()
            for server in servers:
                try:
                    (slots,) = self._ask(server, lambda c: c.call(("CLUSTER", "SLOTS"), deadline=deadline), deadline)
                except StoreUnavailable:
                    continue
                self._topology.learn(slots, server)
                return
        finally:
            self._mapping.release()

    def _ask(self, address: Address, work: Work[T], deadline: Deadline, *, asking: bool = False) -> T:
        node = self._node(address)
        node.breaker.check()
        is_fair = deadline.is_half_left  # with less, being late is not this server's fault
        fresh = False
        while True:
            connection = None
            try:
                connection = node.take(deadline, fresh=fresh)
                if asking:
                    connection.call(("ASKING",), deadline=deadline)
                result = work(connection)
            except Refusal as refusal:
                if connection is not None:
                    node.give(connection)
                (node.breaker.failed if refusal.word in _NOT_READY else node.breaker.worked)()
                raise
            except BaseException as error:
                if connection is not None:
                    connection.close()
                if isinstance(error, Closed) and connection is not None and connection.used:
                    node.drop()
                    self.reconnected += 1
                    fresh = True
                    continue
                if not isinstance(error, Broken):
                    if isinstance(error, X2LError):  # what came was not wanted, but it came
                        node.breaker.worked()
                elif is_fair or not isinstance(error, Late):
                    node.breaker.failed()
                raise
            node.give(connection)
            node.breaker.worked()
            return result

    def _node(self, address: Address) -> Node:
        node = self._nodes.get(address)
        if node is None:
            with self._lock:
                if self._is_closed or len(self._nodes) >= _MAX_NODES:
                    raise Closed(f"no connection to {address}: the client was closed, or knows too many servers")
                breaker = Breaker(str(address), clock=self._clock)
                node = self._nodes.setdefault(address, Node(address, self._access, breaker))
        return node
