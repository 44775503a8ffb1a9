"""What may still bring a copy of a blob into a tier, and what must not any more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import Protocol

from x2l_cluster.types import BlockKey


class Node(Protocol):
    """What the processes of a node agree on; see :class:`x2l_cluster.kv.host.node.Node`."""

    def turn(self, key: BlockKey, patience_s: float) -> AbstractContextManager[bool]: ...

    def enter(self, tenant: str, video: str) -> bool: ...

    def leave(self, tenant: str, video: str) -> None: ...

    def alone(self, tenant: str, video: str, patience_s: float) -> AbstractContextManager[None]: ...


class Token:
    """The right to bring one blob. Once void it is never good again."""

    __slots__ = ("_lock", "entered", "key", "void", "writes")

    def __init__(self, key: BlockKey, *, entered: bool, void: bool, writes: bool) -> None:
        self.key, self.entered, self.void, self.writes = key, entered, void, writes
        self._lock = Lock()

    @contextmanager
    def landing(self) -> Iterator[bool]:
        """Whether the blob may be brought; it stays so until left, since whoever voids the token waits."""
        with self._lock:
            yield not self.void

    def revoke(self) -> None:
        """Returns when what was landing has landed."""
        with self._lock:
            self.void = True


class Fence:
    """Every read that may end in a copy, and every copy that is yet to be written, holds a token from before it looks
    at the blob until the copy is there. A deletion first deletes at home, then voids the tokens there are, then deletes
    copies: whoever begins later finds nothing at home, and whoever began before is void.

    Other processes of the node hold a share of the video as long as they have tokens for it; deleting a video waits
    until none does.
    """

    def __init__(self, node: Node | None, *, patience_s: float) -> None:
        self._node, self._patience_s = node, patience_s
        self._tokens: dict[BlockKey, list[Token]] = defaultdict(list)
        self._lock = Lock()

    def begin(self, key: BlockKey, *, writes: bool = False) -> Token:
        """A token; to be ended. ``writes``: the copies there are may be older than their home."""
        entered = self._node is not None and self._node.enter(key.tenant, key.video)
        token = Token(key, entered=entered, void=self._node is not None and not entered, writes=writes)
        with self._lock:
            self._tokens[key].append(token)
        return token

    def end(self, token: Token) -> None:
        """The copy is there, or never will be. May be called twice."""
        with self._lock:
            tokens = self._tokens.get(token.key, [])
            if token in tokens:
                tokens.remove(token)
            if not tokens:
                self._tokens.pop(token.key, None)
            entered, token.entered = token.entered, False
        if entered and self._node is not None:
            self._node.leave(token.key.tenant, token.key.video)

    def writes(self, key: BlockKey) -> bool:
        """Whether copies of this blob may be older than their home."""
        with self._lock:
            return any(token.writes for token in self._tokens.get(key, ()))

    def void(self, keys: Collection[BlockKey], *, but: Collection[Token] = ()) -> None:
        """No copy of these is brought any more by whoever began before."""
        self._void(lambda: [token for key in keys for token in self._tokens.get(key, ()) if token not in but])

    def void_video(self, tenant: str, video: str) -> None:
        """As :meth:`void`, for all blobs of a video."""
        self._void(
            lambda: [
                token
                for key, tokens in self._tokens.items()
                if (key.tenant, key.video) == (tenant, video)
                for token in tokens
            ]
        )

    def alone(self, tenant: str, video: str) -> AbstractContextManager[None]:
        """Nobody of the node brings blobs of the video meanwhile. Raises StoreUnavailable."""
        return nullcontext() if self._node is None else self._node.alone(tenant, video, self._patience_s)

    def _void(self, find: Callable[[], list[Token]]) -> None:
        while True:  # again: what was landing may have begun something that is to follow
            with self._lock:
                found = find()
            if not found:
                return
            for token in found:
                token.revoke()
                self.end(token)
