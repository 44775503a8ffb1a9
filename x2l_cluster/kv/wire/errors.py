"""Troubles of the wire. All are StoreUnavailable to the rest of the house; the client tells them apart."""

from __future__ import annotations

from x2l_cluster.errors import StoreLate, StoreUnavailable


class Broken(StoreUnavailable):
    """The connection is out of step and must not be used again."""


class Closed(Broken):
    """There is no connection, or the other side ended it."""


class Late(Broken, StoreLate):
    """The deadline passed."""


class Garbled(Broken):
    """What came is no reply, or larger than any reply may be."""


class Refusal(StoreUnavailable):
    """The server answered with an error; the connection stays in step. ``text`` is the server's, its code first."""

    def __init__(self, where: str, text: str) -> None:
        super().__init__(f"the server at {where} refuses: {text}")
        self.text = text

    @property
    def word(self) -> str:
        """The code, as in ``MOVED 3999 127.0.0.1:6381``."""
        return self.text.partition(" ")[0]
