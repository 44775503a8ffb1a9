"""What there is of a chunk, and where."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class Level(StrEnum):
    """How much of a chunk is kept. ``L`` is the paper's *low* compression: fine detail. ``H`` is the coarse gist."""

    L = "L"
    H = "H"

    @property
    def public(self) -> str:
        """The word users see; "low" would read the wrong way round."""
        return "fine" if self is Level.L else "coarse"


class Kind(StrEnum):
    """The kinds of stored object a chunk has."""

    L = "l"
    H = "h"
    INDEX = "x"

    @classmethod
    def of(cls, level: Level) -> Kind:
        return cls.L if level is Level.L else cls.H

    @staticmethod
    def segment(kind: str) -> str:
        """The kind of segments that blobs of ``kind`` are packed into; stores route it as they route ``kind``."""
        return f"{kind}-seg"


class Tier(StrEnum):
    """Where a block lives."""

    DEVICE = "device"
    HOST = "host"
    REMOTE = "remote"
    DISK = "disk"


class Role(IntEnum):
    """What a KV entry stands for; entries of different roles are never pooled together with visual ones."""

    TEXT = 0
    """Words that belong to the chunk: subtitles and the like."""
    TIME = 1
    """The tokens of a timestamp."""
    MARKER = 2
    """Vision start and end."""
    VISUAL = 3
